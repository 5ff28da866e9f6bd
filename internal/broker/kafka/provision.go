package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"postbus/internal/broker"
)

const (
	replicasDefault = 3
	// messageBytes is what a topic of ours takes; Kafka's own default.
	messageBytes = 1048588
	// awaitEvery is how often it is looked whether a topic that was made can be used.
	awaitEvery = 50 * time.Millisecond
)

// rule is what a setting of a topic has to be.
type rule struct {
	name    string
	value   string // that a topic of ours is given
	fits    func(found string) bool
	problem func(found string) string // what a topic that it does not fit does
	owners  bool                      // it is not for us to change it
}

// rules are those for a topic with that many replicas. A setting that the brokers do not know is none to be looked at.
func (b *Broker) rules(replicas int) []rule {
	most := replicas/2 + 1
	said := func(text string) func(string) string { return func(string) string { return text } }
	retention := int64(-1)
	if b.retention > 0 {
		retention = b.retention.Milliseconds()
	}
	return []rule{
		{
			name: "cleanup.policy", value: "delete", owners: true,
			fits:    func(found string) bool { return found == "delete" },
			problem: said("drops messages when others of their key have come (cleanup.policy)"),
		},
		{
			name: "min.insync.replicas", value: strconv.Itoa(most),
			fits: func(found string) bool { return number(found) >= int64(most) },
			problem: func(found string) string {
				return fmt.Sprintf("acknowledges what %s of %d replicas have (min.insync.replicas)", found, replicas)
			},
		},
		{
			name: "unclean.leader.election.enable", value: "false",
			fits:    func(found string) bool { return found == "false" },
			problem: said("may be led by a broker that lacks what was acknowledged (unclean.leader.election.enable)"),
		},
		{
			name: "max.message.bytes", value: strconv.Itoa(messageBytes),
			fits: func(found string) bool { return number(found) >= batchBytesMax },
			problem: func(found string) string {
				return "takes no messages of more than " + found + " bytes (max.message.bytes)"
			},
		},
		{
			name: "retention.bytes", value: "-1",
			fits:    func(found string) bool { return number(found) < 0 },
			problem: func(found string) string { return "keeps " + found + " bytes of a partition (retention.bytes)" },
		},
		{
			name: "retention.ms", value: strconv.FormatInt(retention, 10),
			fits:    func(found string) bool { return b.keepsLongEnough(number(found)) },
			problem: b.tooBrief,
		},
	}
}

// number reads a setting; one that is none fits nothing.
func number(found string) int64 {
	n, err := strconv.ParseInt(found, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// keepsLongEnough tells whether a topic that keeps messages for so long may stay as it is.
func (b *Broker) keepsLongEnough(milliseconds int64) bool {
	wanted := b.retention.Milliseconds()
	switch {
	case milliseconds < 0: // for ever
		return b.verify || wanted == 0
	case b.verify:
		return wanted > 0 && milliseconds >= wanted
	}
	return milliseconds == wanted && wanted > 0
}

func (b *Broker) tooBrief(found string) string {
	keeps := time.Duration(number(found)) * time.Millisecond
	if b.retention == 0 {
		return fmt.Sprintf("keeps messages for %s, not for ever; say retention=%[1]s if that is meant", keeps)
	}
	return fmt.Sprintf("keeps messages for %s, not %s", keeps, b.retention)
}

// Provision makes the topics, and brings the settings of those that are there to what they have to be. With provision=verify it
// only compares. What cannot be is a *broker.RefusedError with the difference.
func (b *Broker) Provision(ctx context.Context, topics ...string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for _, topic := range topics {
		if err := b.provision(ctx, b.topic(topic)); err != nil {
			return b.explain(b.topic(topic), err)
		}
	}
	return nil
}

func (b *Broker) provision(ctx context.Context, name string) error {
	metadata, err := b.admin.Metadata(ctx, name)
	if err != nil {
		return err
	}
	found := metadata.Topics[name]
	replicas := b.replicas
	if replicas == 0 {
		replicas = min(replicasDefault, len(metadata.Brokers))
	}
	switch {
	case errors.Is(found.Err, kerr.UnknownTopicOrPartition) && b.verify:
		return &broker.RefusedError{Reason: "there is no topic " + name}
	case errors.Is(found.Err, kerr.UnknownTopicOrPartition):
		return b.create(ctx, name, replicas)
	case found.Err != nil:
		return found.Err
	}
	problems := b.shapeProblems(found, replicas)
	rules := b.rules(fewestReplicas(found))
	unfit, err := b.compare(ctx, name, rules)
	if err != nil {
		return err
	}
	var changes []kadm.AlterConfig
	for _, r := range rules {
		value, ok := unfit[r.name]
		switch {
		case !ok:
		case b.verify || r.owners:
			problems = append(problems, r.problem(value))
		default:
			changes = append(changes, kadm.AlterConfig{Op: kadm.SetConfig, Name: r.name, Value: kadm.StringPtr(r.value)})
		}
	}
	if len(problems) > 0 {
		return &broker.RefusedError{Reason: fmt.Sprintf("topic %s %s", name, strings.Join(problems, "; it "))}
	}
	return b.change(ctx, name, changes)
}

// shapeProblems are those with what nobody can change while the topic is used.
func (b *Broker) shapeProblems(found kadm.TopicDetail, replicas int) (problems []string) {
	if n := len(found.Partitions); n < b.partitions {
		problems = append(problems, fmt.Sprintf(
			"has %d partitions, not %d; say partitions=%[1]d in the URL of every program if that is meant", n, b.partitions))
	}
	if n := fewestReplicas(found); n < replicas {
		problems = append(problems, fmt.Sprintf("has %d replicas, not %d; say replicas=%[1]d if that is meant", n, replicas))
	}
	return problems
}

func fewestReplicas(found kadm.TopicDetail) int {
	fewest := -1
	for _, p := range found.Partitions {
		if fewest < 0 || len(p.Replicas) < fewest {
			fewest = len(p.Replicas)
		}
	}
	return max(fewest, 1)
}

func (b *Broker) create(ctx context.Context, name string, replicas int) error {
	settings := make(map[string]*string)
	for _, r := range b.rules(replicas) {
		settings[r.name] = kadm.StringPtr(r.value)
	}
	_, err := b.admin.CreateTopic(ctx, int32(b.partitions), int16(replicas), settings, name) //nolint:gosec // read limits both
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {                              // somebody else was faster
		return err
	}
	return b.await(ctx, name)
}

// await waits until a topic that was made has leaders, and all brokers may know of it.
func (b *Broker) await(ctx context.Context, name string) error {
	for {
		metadata, err := b.admin.Metadata(ctx, name)
		if err != nil {
			return err
		}
		found := metadata.Topics[name]
		leaderless := slices.ContainsFunc(found.Partitions.Sorted(), func(p kadm.PartitionDetail) bool {
			return p.Err != nil || p.Leader < 0
		})
		if found.Err == nil && !leaderless {
			return nil
		}
		select {
		case <-time.After(awaitEvery):
		case <-ctx.Done():
			return fmt.Errorf("wait for leaders: %w", ctx.Err())
		}
	}
}

// compare returns the settings that fit no rule, with their values.
func (b *Broker) compare(ctx context.Context, name string, rules []rule) (map[string]string, error) {
	described, err := b.admin.DescribeTopicConfigs(ctx, name)
	if err != nil {
		return nil, err
	}
	topic, err := described.On(name, nil)
	if err == nil {
		err = topic.Err
	}
	if err != nil {
		return nil, err
	}
	unfit := make(map[string]string)
	for _, r := range rules {
		for _, c := range topic.Configs {
			if c.Key == r.name && c.Value != nil && !r.fits(*c.Value) {
				unfit[r.name] = *c.Value
			}
		}
	}
	return unfit, nil
}

func (b *Broker) change(ctx context.Context, name string, changes []kadm.AlterConfig) error {
	if len(changes) == 0 {
		return nil
	}
	answers, err := b.admin.AlterTopicConfigs(ctx, changes, name)
	if err != nil {
		return err
	}
	answer, err := answers.On(name, nil)
	if err == nil {
		err = answer.Err
	}
	return err
}

// explain tells what no waiting will mend from what it will.
func (b *Broker) explain(topic string, err error) error {
	var refused *broker.RefusedError
	if errors.As(err, &refused) {
		return err
	}
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return &broker.RefusedError{Reason: "a broker has a certificate that is not trusted; name its authority as ca in the URL"}
	}
	for _, r := range []struct {
		err    error
		reason string
	}{
		{kerr.SaslAuthenticationFailed, "the brokers refuse user and password"},
		{kerr.UnsupportedSaslMechanism, "the brokers know no " + b.mechanism + "; say sasl=… in the URL"},
		{errClearText, "a broker says that it is elsewhere than on this machine; say tls=on in the URL, or tls=off if clear text will do"},
		{kerr.TopicAuthorizationFailed, "the user may not make, describe or change topic " + topic},
		{kerr.ClusterAuthorizationFailed, "the user may not make topic " + topic},
		{kerr.PolicyViolation, "the cluster's policy does not allow topic " + topic + " as it has to be"},
		{kerr.InvalidReplicationFactor, "the cluster has too few brokers for the replicas of topic " + topic +
			"; start them, or say replicas=1 in the URL if one is meant to do"},
	} {
		if errors.Is(err, r.err) {
			return &broker.RefusedError{Reason: r.reason}
		}
	}
	return fmt.Errorf("provision topic %s: %w", topic, err)
}
