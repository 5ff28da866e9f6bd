package domain_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"postbus/internal/domain"
)

// payments stands for somebody whom no transaction of ours covers, and who takes an idempotency key.
type payments struct{ known map[string]bool }

func (p payments) charge(key string, cents int) {
	if p.known[key] {
		fmt.Println("known, nothing is charged")
		return
	}
	p.known[key] = true
	fmt.Println("charged", cents)
}

// A handler that does what no transaction covers. It may be called again for the same event, or job.
func ExampleIdempotencyKey() {
	provider := payments{known: map[string]bool{}}
	handle := func(ctx context.Context) error {
		key, ok := domain.IdempotencyKey(ctx)
		if !ok {
			return errors.New("not in a handler")
		}
		provider.charge(key.String()+".order", 1200)
		return nil
	}

	// The bus gives this context to the handler, at each delivery.
	ctx := domain.WithCause(context.Background(), domain.Cause{EventID: uuid.MustParse("0191e3b0-0000-7000-8000-000000000000")})
	for range 2 {
		if err := handle(ctx); err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// charged 1200
	// known, nothing is charged
}
