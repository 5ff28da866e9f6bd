package account

import "errors"

var (
	// ErrTokenMalformed is returned for a text that cannot be a link's token, whatever the database holds: a link that
	// was cut off or changed on its way.
	ErrTokenMalformed = errors.New("token is malformed")

	// ErrSecretShort is returned while wiring when the secret key that tokens are derived from has fewer than 32 bytes.
	ErrSecretShort = errors.New("secret key is shorter than 32 bytes")

	// ErrSecretDiffers is returned by the handler of verification mails when the link was made with another secret key than
	// theirs. It goes away when the programs have the same one.
	ErrSecretDiffers = errors.New("SECRET_KEY is not the one this link was made with")

	// ErrPublicURL is returned while wiring when the address that links begin with cannot be that.
	ErrPublicURL = errors.New("public URL must have http or https, a host, and no query")

	// ErrNoEvent is returned by a handler that enqueues a mail, or sends one, and is told of no event that the mail is for: a
	// repeated mail could not be recognised as such. It is a mistake in the wiring.
	ErrNoEvent = errors.New("mail is for no event")
)
