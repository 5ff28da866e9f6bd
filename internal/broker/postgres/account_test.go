package postgres

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
)

// delivering returns a delivery whose messages nobody takes, with all shares at one place.
func delivering(ctx context.Context, t *testing.T) *delivery {
	t.Helper()
	d := newDelivery(Config{}.withDefaults(), func() bool { return true }, make(chan *message.Message))
	joinAll(ctx, d, 1, place{snapshot: "1:1:"})
	return d
}

func joinAll(ctx context.Context, d *delivery, epoch int64, at place) {
	var shares []claimed
	for n := range int16(shareCount) {
		shares = append(shares, claimed{number: n, epoch: epoch, place: at})
	}
	d.join(ctx, shares, nil)
}

func reachedAll(asked []checkpoint) map[int16]bool {
	reached := make(map[int16]bool)
	for _, c := range asked {
		reached[c.number] = true
	}
	return reached
}

// TestContextsOfSharesHandedOverEnd: they are children of one that lives as long as the subscriber, which would gather them,
// sixteen for each time that it rests.
func TestContextsOfSharesHandedOverEnd(t *testing.T) {
	t.Parallel()
	d := delivering(t.Context(), t)
	var contexts []context.Context
	for _, s := range d.shares {
		contexts = append(contexts, s.ctx)
	}
	d.giveUp(shareCount)
	due := d.due()
	if lost := d.stored(due, reachedAll(due)); lost > 0 || len(d.shares) > 0 {
		t.Fatalf("%d shares were lost, %d are left", lost, len(d.shares))
	}
	for _, ctx := range contexts {
		if ctx.Err() == nil {
			t.Fatal("the context of a share that was handed over is still there")
		}
	}
}

// TestLateAnswerLeavesAShareClaimedAnew: that a checkpoint did not reach its share says nothing of the same share that was
// claimed again meanwhile.
func TestLateAnswerLeavesAShareClaimedAnew(t *testing.T) {
	t.Parallel()
	d := delivering(t.Context(), t)
	gone := map[*share]bool{d.shares[3]: true}
	d.lose(3)
	d.join(t.Context(), []claimed{{number: 3, epoch: 2, place: place{snapshot: "1:1:"}}}, nil)
	if lost := d.loseShares(gone); lost > 0 || d.shares[3] == nil {
		t.Errorf("lost %d shares, the new one among them", lost)
	}
}
