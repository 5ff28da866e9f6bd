package arch_test

// Module paths that several rows name.
const (
	modUUID         = "github.com/google/uuid"
	modPgx          = "github.com/jackc/pgx/v5"
	modWatermill    = "github.com/ThreeDotsLabs/watermill"
	modFranz        = "github.com/twmb/franz-go"
	modAMQP         = "github.com/rabbitmq/amqp091-go"
	modWatermillSQL = "github.com/ThreeDotsLabs/watermill-sql/v3"
)

// anything, in a row's may, stands for every package that isn't for tests only.
const anything = "..."

// row says what the non-test files of one package, or of a tree of packages, may import beside the standard library.
type row struct {
	// pkg is relative to the module. "a/b" is that package alone, "a/b/..." is it and all below. The longest match counts.
	pkg string
	// may holds packages of this module, written like pkg, and paths of other modules, which include all below.
	may []string
}

// table is "Packages and who may import whom" of the design, row by row. A package that is in no row may not exist:
// whoever adds one decides here who it may know.
var table = []row{
	// Wiring, signals, flags.
	{pkg: "cmd/...", may: []string{anything}},

	// The domain. A canonical address has its domain in punycode, hence idna, which docs/adr explains.
	{pkg: "internal/domain", may: []string{modUUID}},
	{pkg: "internal/domain/user", may: []string{"internal/domain", modUUID, "golang.org/x/net/idna"}},
	{pkg: "internal/account", may: []string{
		"internal/domain", "internal/domain/user", "internal/uow", "internal/job", "internal/migrate", modUUID, modPgx,
	}},

	// The core: knows nothing of users or email.
	{pkg: "internal/bus", may: []string{"internal/domain", modUUID, modWatermill}},
	{pkg: "internal/uow", may: []string{
		"internal/domain", "internal/bus", "internal/job", "internal/broker/postgres", modUUID, modPgx,
	}},
	{pkg: "internal/broker", may: []string{"internal/broker/...", modWatermill}},
	{pkg: "internal/broker/memory", may: []string{"internal/broker", modWatermill}},
	{pkg: "internal/broker/nats", may: []string{"internal/broker", modWatermill, "github.com/nats-io/nats.go"}},
	{pkg: "internal/broker/amqp", may: []string{"internal/broker", modWatermill, modAMQP}},
	{pkg: "internal/broker/redis", may: []string{"internal/broker", modWatermill, "github.com/redis/go-redis/v9"}},
	{pkg: "internal/broker/kafka", may: []string{"internal/broker", modWatermill, modFranz}},
	{pkg: "internal/broker/remote", may: []string{"internal/broker", "internal/broker/postgres", "internal/migrate", modWatermill, modPgx}},
	{pkg: "internal/broker/postgres", may: []string{
		"internal/broker", "internal/dedicated", "internal/migrate", modUUID, modWatermill, modWatermillSQL, modPgx,
	}},
	{pkg: "internal/relay", may: []string{"internal/broker", "internal/broker/postgres", modWatermill}},
	{pkg: "internal/job", may: []string{"internal/dedicated", "internal/migrate", modUUID, modWatermill, modPgx}},

	// The edges.
	// Its ledger is a table of the application's.
	{pkg: "internal/mail", may: []string{"internal/migrate", modPgx, "github.com/wneessen/go-mail"}},
	{pkg: "internal/web", may: []string{
		"internal/domain", "internal/domain/user", "internal/account", "internal/bus", "internal/uow",
		"internal/broker/...", "internal/relay", "internal/job", "internal/mail", modUUID,
		// Rate limits, and a limit on connections.
		"golang.org/x/time/rate", "golang.org/x/net/netutil",
	}},

	// What every program needs and no rule depends on.
	// Settings are checked by who will read them: pgx's parser judges DATABASE_URL.
	{pkg: "internal/config", may: []string{modPgx, modUUID, "golang.org/x/net/idna", "golang.org/x/term"}},
	// Telemetry is Watermill's logger too, and tells a Postgres error by its SQLSTATE.
	{pkg: "internal/telemetry", may: []string{modWatermill, modPgx, "golang.org/x/term"}},
	{pkg: "internal/migrate", may: []string{modPgx}},
	{pkg: "internal/dedicated", may: []string{modPgx}},
	{pkg: "internal/localpg", may: []string{modPgx, "github.com/fergusstrange/embedded-postgres", "golang.org/x/sys"}},

	// For tests.
	{pkg: "internal/servertest"},
	{pkg: "internal/natstest", may: []string{"internal/servertest", "github.com/nats-io/nats.go"}},
	{pkg: "internal/redistest", may: []string{"internal/servertest", "github.com/redis/go-redis/v9"}},
	{pkg: "internal/kafkatest", may: []string{"internal/servertest", modFranz}},
	{pkg: "internal/rabbittest", may: []string{"internal/servertest", "internal/broker/brokertest", modAMQP}},
	{pkg: "internal/broker/brokertest", may: []string{"internal/broker", modUUID, modWatermill}},
	{pkg: "internal/pgtest", may: []string{"internal/localpg", "internal/migrate", "internal/servertest", modUUID, modPgx, "golang.org/x/sys"}},
	{pkg: "internal/bustest", may: []string{
		"internal/domain", "internal/bus", "internal/uow", "internal/job", "internal/broker/postgres", "internal/migrate", "internal/pgtest",
		modUUID, modWatermill, modPgx,
	}},
}

// testOnly are packages and modules that no program may contain, not even through "anything".
var testOnly = []string{
	"internal/bustest",
	"internal/pgtest",
	"internal/servertest",
	"internal/natstest",
	"internal/redistest",
	"internal/kafkatest",
	"internal/rabbittest",
	"internal/broker/brokertest",
	"github.com/emersion/go-smtp",
	"github.com/emersion/go-sasl",
	"github.com/go-task/task/v3",
	"github.com/cloudevents/sdk-go/v2",
	"github.com/nats-io/nats-server/v2",
	"github.com/twmb/franz-go/pkg/kfake",
	"go.uber.org/goleak",
	"gopkg.in/yaml.v3",
}

// core must not reach application, through however many packages: another domain takes the application's place without
// touching the core.
var (
	core        = []string{"internal/bus", "internal/uow", "internal/broker/...", "internal/relay", "internal/job"}
	application = []string{"internal/account/...", "internal/domain/user/...", "internal/mail/...", "internal/web/..."}
)
