// Package bus carries events to those who handle them: in the same process right after the commit (Bus), and durably,
// by consumers on Watermill's router (Consumer, Router).
//
// The catalogue names every event type that the application knows. The codec turns an event into a Watermill message
// whose metadata are CloudEvents 1.0 attributes, and back. Where messages come from is not the bus's business: it asks
// for Subscribers and hands what they deliver to Watermill's event group processor, one group for each consumer.
//
// A durable handler runs at least once for every event of its types, in order for one key. It returns nil when the event
// is dealt with; an error, a panic included, brings the same event again later.
package bus
