package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbus/internal/broker"
)

const (
	// subjectCount is into how many subjects the keys of a topic are cut, for others to read a part of them.
	subjectCount    = 16
	keyAttribute    = "partitionkey"
	replicasCluster = 3
)

// subject is that of a message's key, or of the id of one without a key.
func (b *Broker) subject(topic string, m *message.Message) string {
	key := m.Metadata.Get(keyAttribute)
	if key == "" {
		key = m.UUID
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // never fails
	return b.prefix + "." + topic + "." + strconv.Itoa(int(h.Sum32()%subjectCount))
}

// Provision makes the streams, and brings those that are there to the settings of the URL where a server can do that. With
// provision=verify it only compares. What cannot be is a *broker.RefusedError with the difference.
func (b *Broker) Provision(ctx context.Context, topics ...string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for _, topic := range topics {
		if err := b.provision(ctx, topic); err != nil {
			return b.explain(topic, err)
		}
	}
	return nil
}

func (b *Broker) provision(ctx context.Context, topic string) error {
	if !b.conn.IsConnected() {
		return nats.ErrDisconnected // or the answer would take until the end of ctx
	}
	if most := b.conn.MaxPayload(); most < broker.MessageBytesMax {
		return &broker.RefusedError{Reason: fmt.Sprintf(
			"the server takes messages of %d bytes at most (max_payload), and an event may have %d", most, broker.MessageBytesMax)}
	}
	wanted := b.config(topic)
	stream, err := b.js.Stream(ctx, wanted.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound) && b.verify:
		return &broker.RefusedError{Reason: fmt.Sprintf("there is no stream %s for subjects %s", wanted.Name, wanted.Subjects[0])}
	case errors.Is(err, jetstream.ErrStreamNotFound):
		_, err = b.js.CreateStream(ctx, wanted)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // somebody else was faster
			return nil
		}
		return err
	case err != nil:
		return err
	}
	found := stream.CachedInfo().Config
	if problems := b.unfit(found, wanted); len(problems) > 0 {
		return &broker.RefusedError{Reason: fmt.Sprintf("stream %s %s", wanted.Name, strings.Join(problems, "; it "))}
	}
	if b.verify || found.MaxAge == wanted.MaxAge && found.Replicas == wanted.Replicas && found.Duplicates == wanted.Duplicates {
		return nil
	}
	found.MaxAge, found.Replicas, found.Duplicates = wanted.MaxAge, wanted.Replicas, wanted.Duplicates
	_, err = b.js.UpdateStream(ctx, found)
	return err
}

func (b *Broker) config(topic string) jetstream.StreamConfig {
	replicas := b.replicas
	if replicas == 0 {
		replicas = 1
		if b.conn.ConnectedClusterName() != "" {
			replicas = replicasCluster
		}
	}
	return jetstream.StreamConfig{
		Name: b.stream(topic), Description: "events of topic " + topic + ", by postbus",
		Subjects:  []string{b.prefix + "." + topic + ".*"},
		Storage:   jetstream.FileStorage,
		Retention: jetstream.LimitsPolicy,
		Discard:   jetstream.DiscardNew, // a stream that is full refuses what is new, and the relay waits
		MaxAge:    b.retention, Replicas: replicas, Duplicates: duplicateWindow,
		DenyDelete: true, AllowDirect: true,
	}
}

// unfit tells in which ways a stream that is there would lose what it acknowledges, or not take it.
func (b *Broker) unfit(found, wanted jetstream.StreamConfig) (problems []string) {
	bounded := found.MaxMsgs > 0 || found.MaxBytes > 0 || found.MaxMsgsPerSubject > 0
	tests := []struct {
		unfit   bool
		problem string
	}{
		{found.Storage != jetstream.FileStorage, "keeps its messages in memory, not in files"},
		{found.NoAck, "acknowledges nothing (no_ack)"},
		{found.PersistMode == jetstream.AsyncPersistMode, "acknowledges before it has stored (persist_mode)"},
		{found.MaxMsgSize > 0 && found.MaxMsgSize < broker.MessageBytesMax, "takes no large messages (max_msg_size)"},
		{found.Retention != jetstream.LimitsPolicy, "drops messages when somebody has read them (retention)"},
		{bounded && found.Discard != jetstream.DiscardNew, "drops old messages when it is full (discard)"},
		{found.MaxMsgsPerSubject > 0 && !found.DiscardNewPerSubject, "drops old messages of a subject (max_msgs_per_subject)"},
		{found.SubjectTransform != nil || found.Mirror != nil || found.Sealed, "does not take what is published to it"},
		{!slices.Equal(found.Subjects, wanted.Subjects), fmt.Sprintf("has the subjects %v, not %v", found.Subjects, wanted.Subjects)},
		{b.verify && found.Replicas < wanted.Replicas,
			fmt.Sprintf("has %d replicas, not %d; say replicas=%[1]d if that is meant", found.Replicas, wanted.Replicas)},
		{b.tooBrief(found) != "", b.tooBrief(found)},
	}
	for _, t := range tests {
		if t.unfit {
			problems = append(problems, t.problem)
		}
	}
	return problems
}

// tooBrief tells how a stream of somebody else keeps messages for less than is meant; "" if it does not.
func (b *Broker) tooBrief(found jetstream.StreamConfig) string {
	switch {
	case !b.verify || found.MaxAge == 0:
		return ""
	case b.retention == 0:
		return fmt.Sprintf("keeps messages for %s, not for ever; say retention=%[1]s if that is meant", found.MaxAge)
	case found.MaxAge < b.retention:
		return fmt.Sprintf("keeps messages for %s, not %s", found.MaxAge, b.retention)
	}
	return ""
}

// Error codes of the server that no waiting will mend.
const (
	codeNoPeers        = 10005 // no suitable peers for placement
	codeNotClustered   = 10074 // replicas > 1 not supported in non-clustered mode
	codeSubjectOverlap = 10065 // subjects overlap with an existing stream
)

// refused tells why the server lets nobody in, if that is so.
func (b *Broker) refused() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.Is(b.why, nats.ErrAuthorization), errors.Is(b.why, nats.ErrAuthExpired):
		return "the server refuses user and password"
	case errors.Is(b.why, nats.ErrSecureConnWanted):
		return "the server does not speak TLS; let it, or say tls=off in the URL if clear text will do"
	case errors.Is(b.why, nats.ErrSecureConnRequired):
		return "the server wants TLS; say tls=on in the URL"
	case errors.As(b.why, &certificate):
		return "the server has a certificate that is not trusted; name its authority as ca in the URL"
	}
	return ""
}

// explain tells what no waiting will mend from what it will.
func (b *Broker) explain(topic string, err error) error {
	var api *jetstream.APIError
	reason := ""
	if errors.As(err, &api) {
		reason = map[jetstream.ErrorCode]string{
			codeNoPeers: "the cluster has too few servers for the replicas of stream " + b.stream(topic) +
				"; start them, or say replicas=1 in the URL if one is meant to do",
			codeNotClustered:   "the server is no cluster and keeps one replica only",
			codeSubjectOverlap: "another stream has subjects of " + b.prefix + "." + topic + ".*; choose another prefix in the URL",
		}[api.ErrorCode]
	} else if errors.Is(err, nats.ErrDisconnected) {
		reason = b.refused()
	}
	if reason != "" {
		return &broker.RefusedError{Reason: reason}
	}
	var refused *broker.RefusedError
	if errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("provision stream %s: %w", b.stream(topic), err)
}
