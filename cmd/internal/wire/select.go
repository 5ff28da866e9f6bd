package wire

import (
	"fmt"
	"slices"
	"strings"

	"postbus/internal/account"
	"postbus/internal/bus"
	"postbus/internal/config"
)

// Selection is what a process runs.
type Selection struct {
	consumers []*bus.Consumer
	queues    []queue
}

// Consumers names the consumers, for a person.
func (s Selection) Consumers() string {
	if len(s.consumers) == 0 {
		return "none here"
	}
	return names(s.consumers)
}

// Queues names the queues of jobs, for a person.
func (s Selection) Queues() string {
	if len(s.queues) == 0 {
		return "none here"
	}
	return namesOf(s.queues)
}

// SendsMail tells whether the process runs the jobs that send mail.
func (s Selection) SendsMail() bool {
	return slices.ContainsFunc(s.queues, func(q queue) bool { return q.name == account.MailQueue })
}

// Select returns the consumers, and the queues of jobs, that the names are of, these behind config.QueuePrefix; all for none.
func (b *Backbone) Select(only []string) (Selection, error) { return selection(b.consumers, only) }

func selection(all []*bus.Consumer, only []string) (s Selection, err error) {
	if len(only) == 0 {
		return Selection{consumers: all, queues: queues()}, nil
	}
	for _, name := range only {
		if queued, ok := strings.CutPrefix(name, config.QueuePrefix); ok {
			q, err := queueOf(queued)
			if err != nil {
				return Selection{}, err
			}
			s.queues = append(s.queues, q)
			continue
		}
		c, err := consumerOf(all, name)
		if err != nil {
			return Selection{}, err
		}
		s.consumers = append(s.consumers, c)
	}
	return s, nil
}

// CheckNames checks the names of consumers and queues in the settings, before anything is made.
func CheckNames(c config.Config) error {
	all, err := consumers(new(account.Service)) // which handles nothing here
	if err != nil {
		return err
	}
	if _, err := selection(all, c.Only); err != nil {
		return err
	}
	for _, name := range []string{c.Move, c.RenameTo, c.WhichConsumer} {
		if name == "" || isOwnRelay(c, name) {
			continue
		}
		if _, err := consumerOf(all, name); err != nil {
			return err
		}
	}
	if c.WhichQueue != "" {
		_, err = queueOf(c.WhichQueue)
	}
	return err
}

func consumerOf(all []*bus.Consumer, name string) (*bus.Consumer, error) {
	i := slices.IndexFunc(all, func(c *bus.Consumer) bool { return c.Name() == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no consumer %q; there are %s", name, names(all))
	}
	return all[i], nil
}

func queueOf(name string) (queue, error) {
	all := queues()
	i := slices.IndexFunc(all, func(q queue) bool { return q.name == name })
	if i < 0 {
		return queue{}, fmt.Errorf("there is no queue %q; there are %s", name, namesOf(all))
	}
	return all[i], nil
}

func names(consumers []*bus.Consumer) string {
	all := make([]string, len(consumers))
	for i, c := range consumers {
		all[i] = c.Name()
	}
	return strings.Join(all, ", ")
}

func namesOf(queues []queue) string {
	all := make([]string, len(queues))
	for i, q := range queues {
		all[i] = q.name
	}
	return strings.Join(all, ", ")
}
