package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"postbus/internal/broker"
)

const (
	sentinelPort = "26379"
	// askTimeout is how long a sentinel has to answer before the next is asked.
	askTimeout = time.Second
)

// connect makes a connection to the server, whichever that is at the moment.
func (b *Broker) connect(ctx context.Context, network, address string) (net.Conn, error) {
	if b.master != "" {
		var err error
		if address, err = b.primary(ctx); err != nil {
			return nil, err
		}
		if b.localOnly && !(broker.Address{Hosts: []string{address}}).Local() {
			return nil, refuse("the sentinels tell of a server elsewhere than on this machine; say tls=on in the URL, or tls=off if " +
				"clear text will do")
		}
	}
	return b.dial(ctx, network, address)
}

// primary asks the sentinels one after another which server it is, until one tells. It returns a *broker.RefusedError when none
// that answers knows it.
func (b *Broker) primary(ctx context.Context) (string, error) {
	var failed []error
	unknown := false
	for _, host := range b.hosts {
		address, err := b.ask(ctx, host)
		switch {
		case err == nil:
			return address, nil
		case errors.Is(err, redis.Nil):
			unknown = true
		default:
			failed = append(failed, err)
		}
	}
	if unknown {
		return "", refuse("the sentinels know no server by the name that master has in the URL")
	}
	return "", fmt.Errorf("ask the sentinels: %w", errors.Join(failed...))
}

// ask asks one sentinel. They have no passwords here: theirs are not the server's.
func (b *Broker) ask(ctx context.Context, host string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	options := b.common()
	options.Addr, options.Dialer = host, b.dial
	sentinel := redis.NewSentinelClient(options)
	address, err := sentinel.GetMasterAddrByName(ctx, b.master).Result()
	err = errors.Join(err, sentinel.Close())
	if err == nil && len(address) != 2 {
		err = errors.New("a sentinel tells no address")
	}
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(address[0], address[1]), nil
}
