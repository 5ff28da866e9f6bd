package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"postbus/internal/broker"
)

// durability is how a server keeps what it acknowledges.
type durability string

const (
	always    durability = "always"    // on its disk
	everysec  durability = "everysec"  // in files, which it synchronises every second
	inMemory  durability = "memory"    // in its memory, and its replicas'
	unchecked durability = "unchecked" // it cannot be seen

	durabilityParameter = "durability"
	// versionMin is the first that tells how many entries a stream has had.
	versionMin = 7
	// group is the consumer group that tells when a stream was made; nobody consumes by it.
	group = "postbus"
)

func parseDurability(text string) (durability, error) {
	switch d := durability(text); d {
	case always, everysec, inMemory, unchecked:
		return d, nil
	}
	return "", &broker.URLError{Problem: "has a parameter " + durabilityParameter + " that is not always, everysec, memory or unchecked"}
}

// Provision looks whether the server keeps what it acknowledges, as the URL wants it, and makes the streams. With
// provision=verify it only looks for them. What cannot be is a *broker.RefusedError.
func (b *Broker) Provision(ctx context.Context, topics ...string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := b.inspect(ctx, b.client); err != nil {
		return fmt.Errorf("inspect the server: %w", explain(err))
	}
	for _, topic := range topics {
		if err := b.provision(ctx, b.stream(topic)); err != nil {
			return fmt.Errorf("provision stream %s: %w", b.stream(topic), explain(err))
		}
	}
	return nil
}

func (b *Broker) provision(ctx context.Context, stream string) error {
	var err error
	if b.verify {
		_, err = markOf(b.client.XInfoGroups(ctx, stream))
	} else {
		err = b.client.XGroupCreateMkStream(ctx, stream, group, newMark()).Err()
	}
	switch {
	case redis.HasErrorPrefix(err, "BUSYGROUP"): // it is there
		return nil
	case redis.HasErrorPrefix(err, "WRONGTYPE"):
		return refuse("%s is not a stream; choose another prefix in the URL", stream)
	case errors.Is(err, errNoMark), redis.HasErrorPrefix(err, errNoKey):
		return refuse("there is no stream %s with a group %s; make it with: XGROUP CREATE %[1]s %[2]s %[3]s MKSTREAM",
			stream, group, newMark())
	}
	return err
}

// newMark is an id that no other stream's group has.
func newMark() string {
	return fmt.Sprintf("%d-%d", time.Now().UnixMilli(), rand.Int64()) //nolint:gosec // chance is enough
}

const errNoKey = "no such key"

var errNoMark = errors.New("the stream has no group " + group)

// markOf is the mark of a stream.
func markOf(groups *redis.XInfoGroupsCmd) (string, error) {
	all, err := groups.Result()
	if err != nil {
		return "", err
	}
	for _, g := range all {
		if g.Name == group {
			return g.LastDeliveredID, nil
		}
	}
	return "", errNoMark
}

// inspected is a server that is looked at, by a client or by one connection.
type inspected interface {
	Info(ctx context.Context, sections ...string) *redis.StringCmd
	ConfigGet(ctx context.Context, name string) *redis.MapStringStringCmd
}

// inspect looks at the server and its settings.
func (b *Broker) inspect(ctx context.Context, server inspected) error {
	text, err := server.Info(ctx).Result()
	if err != nil {
		return err
	}
	info := parseInfo(text)
	version, _, _ := strings.Cut(info["redis_version"], ".")
	if n, err := strconv.Atoi(version); err != nil || n < versionMin {
		return refuse("the server is Redis %s, and has to be 7.0 or later", info["redis_version"])
	}
	switch policy := info["maxmemory_policy"]; {
	case info["cluster_enabled"] == "1":
		return refuse("the server is a node of a Redis Cluster, which is not supported")
	case info["role"] != "master" && b.master != "":
		return errors.New("the server is a replica, which takes nothing")
	case info["role"] != "master":
		return refuse("the server is a replica, which takes nothing; name its primary in the URL")
	case strings.HasPrefix(policy, "allkeys-"):
		return refuse("the server drops streams when its memory is full (maxmemory-policy %s); let it have noeviction, "+
			"which refuses what is new", policy)
	}
	return b.inspectDurability(ctx, server)
}

// inspectDurability compares what the URL wants with the server's settings.
func (b *Broker) inspectDurability(ctx context.Context, server inspected) error {
	if b.durability == unchecked {
		return nil
	}
	config := make(map[string]string)
	for _, name := range []string{"appendonly", "appendfsync", "no-appendfsync-on-rewrite"} {
		values, err := server.ConfigGet(ctx, name).Result()
		if redis.IsPermissionError(err) || redis.HasErrorPrefix(err, "unknown command") || err == nil && values[name] == "" {
			return refuse("the server does not tell its settings (CONFIG GET), so whether it keeps what it acknowledges cannot be " +
				"seen; if you know that it does, or need not, say durability=unchecked in the URL")
		}
		if err != nil {
			return err
		}
		config[name] = values[name]
	}
	var found durability
	var setting string
	switch {
	case config["appendonly"] != "yes":
		found, setting = inMemory, "appendonly no"
	case config["appendfsync"] == "no":
		found, setting = inMemory, "appendfsync no"
	case config["no-appendfsync-on-rewrite"] == "yes":
		found, setting = inMemory, "no-appendfsync-on-rewrite yes"
	case config["appendfsync"] != "always":
		found, setting = everysec, "appendfsync "+config["appendfsync"]
	default:
		return nil
	}
	if b.durability == inMemory || b.durability == found {
		return nil
	}
	return refuse("the server acknowledges what it has not synchronised (%s), and can lose it; let it have appendonly yes and "+
		"appendfsync always, or say durability=%s in the URL if that is meant", setting, found)
}

// parseInfo reads what INFO answers.
func parseInfo(text string) map[string]string {
	info := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	return info
}

func refuse(format string, values ...any) error {
	return &broker.RefusedError{Reason: fmt.Sprintf(format, values...)}
}

// explain tells what no waiting will mend from what it will.
func explain(err error) error {
	var refused *broker.RefusedError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &refused):
		return err
	case redis.IsAuthError(err):
		return refuse("the server refuses user and password")
	case redis.IsPermissionError(err), redis.HasErrorPrefix(err, "DENIED"), redis.HasErrorPrefix(err, "DB index"):
		return refuse("the server refuses what has to be done: %v", err)
	case errors.As(err, &certificate):
		return refuse("the server has a certificate that is not trusted; name its authority as ca in the URL")
	}
	return err
}
