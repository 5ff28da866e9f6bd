package arch_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestTaskfileHasTheHabits(t *testing.T) {
	var file struct {
		Version string
		Tasks   map[string]struct {
			Desc string
			Cmd  string
		}
	}
	readYAML(t, "Taskfile.yml", &file)

	if file.Version != "3" {
		t.Errorf("version = %q, want 3", file.Version)
	}
	for _, name := range []string{"run", "consumer", "test", "race", "soak", "lint", "bench", "up", "down", "psql", "fmt"} {
		task, ok := file.Tasks[name]
		if !ok {
			t.Errorf("there is no task %s", name)
		} else if task.Desc == "" {
			t.Errorf("task %s has no desc, so `task` doesn't list it", name)
		}
	}
	if cmd := file.Tasks["default"].Cmd; !strings.Contains(cmd, "--list") {
		t.Errorf("task alone runs %q, want a list", cmd)
	}
}

// service is what the tests look at in a service of docker-compose.yml. The decoder resolves merges (<<) as Compose does.
type service struct {
	Image       string
	User        string
	ReadOnly    bool     `yaml:"read_only"`
	CapDrop     []string `yaml:"cap_drop"`
	CapAdd      []string `yaml:"cap_add"`
	Privileged  bool
	SecurityOpt []string `yaml:"security_opt"`
	MemLimit    string   `yaml:"mem_limit"`
	CPUs        float64  `yaml:"cpus"`
	NetworkMode string   `yaml:"network_mode"`
	Ports       []string
	Volumes     []string
	Environment map[string]string
	DependsOn   map[string]struct {
		Condition string
		Restart   bool
	} `yaml:"depends_on"`
	Healthcheck struct {
		Test    []string
		Disable bool
	}
}

func readServices(t *testing.T) map[string]service {
	t.Helper()
	var file struct {
		Services map[string]service
		Volumes  map[string]any
	}
	readYAML(t, "docker-compose.yml", &file)
	for name, s := range file.Services {
		for _, volume := range s.Volumes {
			source, _, _ := strings.Cut(volume, ":")
			if _, ok := file.Volumes[source]; !ok {
				t.Errorf("%s mounts %s, which isn't a named volume", name, source)
			}
		}
	}
	return file.Services
}

func TestComposeServices(t *testing.T) {
	services := readServices(t)
	ports := map[string][]string{
		"postgres":      {"127.0.0.1:5432:5432"},
		"postgres-jobs": {"127.0.0.1:5433:5432"},
		"mail":          {"127.0.0.1:8025:8025"},
		"app":           {"127.0.0.1:8080:8080"},
		"consumer":      nil,
	}
	for name, want := range ports {
		s, ok := services[name]
		if !ok {
			t.Errorf("there is no service %s", name)
			continue
		}
		if !slices.Equal(s.Ports, want) {
			t.Errorf("%s publishes %q, want %q", name, s.Ports, want)
		}
	}
	for name, s := range services {
		if _, ok := ports[name]; !ok {
			t.Errorf("service %s isn't in this test", name)
		}
		if len(s.Healthcheck.Test) < 2 || s.Healthcheck.Disable {
			t.Errorf("%s has no health check", name)
		}
		for other, on := range s.DependsOn {
			if on.Condition != "service_healthy" {
				t.Errorf("%s waits for %s to be %q, want service_healthy", name, other, on.Condition)
			}
			if _, ok := services[other]; !ok {
				t.Errorf("%s waits for %s, which doesn't exist", name, other)
			}
		}
	}
}

func TestComposeIsHardened(t *testing.T) {
	for name, s := range readServices(t) {
		switch {
		case !s.ReadOnly:
			t.Errorf("%s can write to its root file system", name)
		case !slices.Equal(s.CapDrop, []string{"ALL"}), len(s.CapAdd) > 0, s.Privileged:
			t.Errorf("%s keeps capabilities", name)
		case !slices.Contains(s.SecurityOpt, "no-new-privileges:true"):
			t.Errorf("%s may gain privileges", name)
		case s.MemLimit == "", s.CPUs == 0:
			t.Errorf("%s has no limit on memory or processors", name)
		case strings.HasPrefix(s.User, "0"), s.User == "" && s.Image != "postbus:dev":
			t.Errorf("%s runs as root", name)
		}
		for key, value := range s.Environment {
			if strings.Contains(key, "PASSWORD") && value != "dev-password-only" {
				t.Errorf("%s: %s isn't the password that says that it's for development only", name, key)
			}
		}
	}
}

// TestComposeMailIsLoopback: internal/mail sends clear text to loopback only, so whoever sends has to share the
// catcher's network namespace and be restarted with it.
func TestComposeMailIsLoopback(t *testing.T) {
	services := readServices(t)
	consumer, app := services["consumer"], services["app"]
	if consumer.NetworkMode != "service:mail" {
		t.Errorf("the consumer's network_mode = %q, want service:mail", consumer.NetworkMode)
	}
	if !consumer.DependsOn["mail"].Restart {
		t.Error("the consumer isn't restarted when its network namespace goes away with the mail catcher")
	}
	want := "smtp://" + services["mail"].Environment["MP_SMTP_BIND_ADDR"]
	if got := consumer.Environment["SMTP_URL"]; got != want {
		t.Errorf("the consumer sends to %q, want %q", got, want)
	}
	if got := app.Environment["CONSUMERS"]; got != "none" {
		t.Errorf("the app runs consumers (CONSUMERS=%s), and it can't reach the mail catcher", got)
	}
	for _, key := range []string{"DATABASE_URL", "JOB_QUEUE_DATABASE_URL", "SECRET_KEY", "PUBLIC_URL"} {
		if app.Environment[key] == "" || app.Environment[key] != consumer.Environment[key] {
			t.Errorf("%s is %q for the app and %q for the consumer, want one value", key,
				app.Environment[key], consumer.Environment[key])
		}
	}
}

func TestScriptsAreExecutable(t *testing.T) {
	script := filepath.Join(root, ".ci", "run")
	info, err := os.Stat(script)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode()&0o100 == 0 {
		t.Error(".ci/run isn't executable")
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash to check the syntax with")
	}
	if out, err := exec.CommandContext(t.Context(), bash, "-n", script).CombinedOutput(); err != nil {
		t.Errorf(".ci/run: %v\n%s", err, out)
	}
}

func readYAML(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}
