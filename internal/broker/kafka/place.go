package kafka

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// place is where a partition was read up to.
type place struct {
	topic  string // its id, of which one that was made anew has another
	offset int64  // of the last message that was read
	mark   uint64 // by which that message is known
}

func (p place) String() string { return fmt.Sprintf("%s/%d/%x", p.topic, p.offset, p.mark) }

// parsePlace reads what String wrote; false for anything else.
func parsePlace(s string) (p place, ok bool) {
	topic, rest, ok1 := strings.Cut(s, "/")
	offset, mark, ok2 := strings.Cut(rest, "/")
	var err1, err2 error
	p.topic = topic
	p.offset, err1 = strconv.ParseInt(offset, 10, 64)
	p.mark, err2 = strconv.ParseUint(mark, 16, 64)
	return p, ok1 && ok2 && err1 == nil && err2 == nil && p.offset >= 0
}

func placeOf(topic string, r *kgo.Record) place {
	return place{topic: topic, offset: r.Offset, mark: markOf(r)}
}

// markOf is a hash of a message: what is stored at an offset after the end of a partition was lost has another.
func markOf(r *kgo.Record) uint64 {
	h := fnv.New64a()
	write := func(part []byte) { // never fails
		_, _ = fmt.Fprintf(h, "%d:", len(part))
		_, _ = h.Write(part)
	}
	write(r.Key)
	write(r.Value)
	for _, header := range r.Headers {
		write([]byte(header.Key))
		write(header.Value)
	}
	return h.Sum64()
}

// idText is a topic's id; brokers before Kafka 2.8 have none, and all their topics the same.
func idText(id kadm.TopicID) string { return fmt.Sprintf("%x", id[:]) }
