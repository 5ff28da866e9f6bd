package nats

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// stored asks a stream's leader for the message with a sequence number. It returns jetstream.ErrMsgNotFound when there is none.
//
// It does not ask as the driver does: any replica answers that, also one that does not have the message yet; and the driver
// takes a message without data and with a header Status for an answer that there is none.
func (b *Broker) stored(ctx context.Context, stream string, sequence uint64) (nats.Header, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	request := fmt.Appendf(nil, `{"seq":%d}`, sequence)
	answer, err := b.conn.RequestWithContext(ctx, jetstream.DefaultAPIPrefix+"STREAM.MSG.GET."+stream, request)
	if err != nil {
		return nil, nil, fmt.Errorf("ask for message %d: %w", sequence, err)
	}
	var found struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Header []byte `json:"hdrs"`
			Data   []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(answer.Data, &found); err != nil {
		return nil, nil, fmt.Errorf("ask for message %d: %w", sequence, err)
	}
	switch {
	case found.Error != nil && found.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, nil, jetstream.ErrMsgNotFound
	case found.Error != nil:
		return nil, nil, fmt.Errorf("ask for message %d: %w", sequence, found.Error)
	case len(found.Message.Header) == 0:
		return nil, found.Message.Data, nil
	}
	header, err := nats.DecodeHeadersMsg(found.Message.Header)
	if err != nil {
		return nil, nil, fmt.Errorf("read message %d: %w", sequence, err)
	}
	return header, found.Message.Data, nil
}
