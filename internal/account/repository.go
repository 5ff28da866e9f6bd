package account

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"postbus/internal/domain/user"
)

// querier is what the statements run on: a Unit of Work's transaction, or a pool for those that only read.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// repository has the statements on the tables of this package, each of them one round trip. All times come from
// the database: the clocks of two application servers differ, and a link's end must not depend on who is asked. Tables
// are named with their schema, so that a search_path in DATABASE_URL cannot lead elsewhere.
type repository struct{ db querier }

// claim inserts an unverified user with the id and address given, or finds the user who has that address. Either way
// the row is locked and its state returned; the id tells which of the two it was.
//
// The update changes nothing. It is there because it locks and returns the row of a known address in the very statement
// that inserts an unknown one, with much the same work. No index contains a changed value, so it stays on its page.
func (r repository) claim(ctx context.Context, id uuid.UUID, a user.Address) (user.State, error) {
	row := r.db.QueryRow(ctx, `
		INSERT INTO public.users AS u (id, email, email_canonical) VALUES ($1, $2, $3)
		ON CONFLICT (email_canonical) DO UPDATE SET email_canonical = u.email_canonical
		RETURNING u.id, u.email, u.registered_at, u.verified_at`,
		id, a.String(), a.Canonical())
	state, err := scanUser(row)
	if err != nil {
		return user.State{}, fmt.Errorf("claim address: %w", err)
	}
	return state, nil
}

// lockByAddress locks the user who has the address.
func (r repository) lockByAddress(ctx context.Context, a user.Address) (state user.State, found bool, err error) {
	row := r.db.QueryRow(ctx, `
		SELECT id, email, registered_at, verified_at FROM public.users WHERE email_canonical = $1 FOR UPDATE`,
		a.Canonical())
	state, err = scanUser(row)
	if errors.Is(err, pgx.ErrNoRows) {
		return user.State{}, false, nil
	}
	if err != nil {
		return user.State{}, false, fmt.Errorf("lock user: %w", err)
	}
	return state, true, nil
}

// lockByToken locks the user whom the link was sent to, and tells the transaction's time. The verification itself is
// not locked: users come first in the order of locks.
func (r repository) lockByToken(ctx context.Context, t Token) (state user.State, now time.Time, found bool, err error) {
	row := r.db.QueryRow(ctx, `
		SELECT u.id, u.email, u.registered_at, u.verified_at, now()
		FROM public.email_verifications v JOIN public.users u ON u.id = v.user_id
		WHERE v.token_hash = $1 FOR UPDATE OF u`,
		t.hash())
	state, err = scanUser(row, &now)
	if errors.Is(err, pgx.ErrNoRows) {
		return user.State{}, time.Time{}, false, nil
	}
	if err != nil {
		return user.State{}, time.Time{}, false, fmt.Errorf("lock user: %w", err)
	}
	return state, now, true, nil
}

// openVerification stores a verification unless the user's limits are reached. The user's row is locked, so nobody else
// is counting at the same time.
func (r repository) openVerification(ctx context.Context, id, userID uuid.UUID, t Token) (allowed bool, err error) {
	tag, err := r.db.Exec(ctx, `
		INSERT INTO public.email_verifications (id, user_id, token_hash, created_at, expires_at)
		SELECT $1, $2, $3, now(), now() + $4::interval
		FROM (
			SELECT
				count(*) FILTER (WHERE created_at > now() - interval '1 minute') AS of_minute,
				count(*) FILTER (WHERE created_at > now() - interval '1 hour') AS of_hour,
				count(*) AS of_day
			FROM public.email_verifications
			WHERE user_id = $2 AND created_at > now() - interval '24 hours'
		) latest
		WHERE of_minute < $5 AND of_hour < $6 AND of_day < $7`,
		id, userID, t.hash(), linkLife, verificationsPerMinute, verificationsPerHour, verificationsPerDay)
	if err != nil {
		return false, fmt.Errorf("open verification: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

// noteRepeat notes that the owner of a known address is being told of another registration, unless that was done
// within repeatInterval.
func (r repository) noteRepeat(ctx context.Context, userID uuid.UUID) (due bool, err error) {
	tag, err := r.db.Exec(ctx, `
		UPDATE public.users SET repeat_told_at = now()
		WHERE id = $1 AND (repeat_told_at IS NULL OR repeat_told_at <= now() - $2::interval)`,
		userID, repeatInterval)
	if err != nil {
		return false, fmt.Errorf("note repeated registration: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

// consume uses a verification up if it is open; of many calls for one token exactly one finds it so.
func (r repository) consume(ctx context.Context, t Token) (consumed bool, err error) {
	tag, err := r.db.Exec(ctx, `
		UPDATE public.email_verifications SET used_at = now()
		WHERE token_hash = $1 AND used_at IS NULL AND expires_at > now()`,
		t.hash())
	if err != nil {
		return false, fmt.Errorf("consume token: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

func (r repository) storeVerified(ctx context.Context, u *user.User) error {
	_, err := r.db.Exec(ctx, `UPDATE public.users SET verified_at = $2 WHERE id = $1`, u.ID(), u.State().VerifiedAt)
	if err != nil {
		return fmt.Errorf("store user: %w", err)
	}
	return nil
}

// link tells the state of a link: LinkUnknown, LinkOpen, LinkUsed or LinkExpired. Used comes before expired: who follows
// an old link to an address that is verified has nothing to worry about.
func (r repository) link(ctx context.Context, t Token) (LinkState, error) {
	var used, expired bool
	err := r.db.QueryRow(ctx, `
		SELECT v.used_at IS NOT NULL OR u.verified_at IS NOT NULL, v.expires_at <= now()
		FROM public.email_verifications v JOIN public.users u ON u.id = v.user_id
		WHERE v.token_hash = $1`,
		t.hash()).Scan(&used, &expired)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return LinkUnknown, nil
	case err != nil:
		return LinkUnknown, fmt.Errorf("read link: %w", err)
	case used:
		return LinkUsed, nil
	case expired:
		return LinkExpired, nil
	}
	return LinkOpen, nil
}

// emailOf returns where a user's mail goes.
func (r repository) emailOf(ctx context.Context, userID uuid.UUID) (email string, found bool, err error) {
	err = r.db.QueryRow(ctx, `SELECT email FROM public.users WHERE id = $1`, userID).Scan(&email)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", false, nil
	case err != nil:
		return "", false, fmt.Errorf("read address: %w", err)
	}
	return email, true, nil
}

// emailToVerify returns where a verification's mail goes, as long as its link is of use to anybody, and the hash of the
// token that its link has to carry.
func (r repository) emailToVerify(
	ctx context.Context, userID, verificationID uuid.UUID,
) (email string, tokenHash []byte, found bool, err error) {
	err = r.db.QueryRow(ctx, `
		SELECT u.email, v.token_hash FROM public.users u JOIN public.email_verifications v ON v.user_id = u.id
		WHERE u.id = $1 AND v.id = $2 AND u.verified_at IS NULL AND v.used_at IS NULL AND v.expires_at > now()`,
		userID, verificationID).Scan(&email, &tokenHash)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", nil, false, nil
	case err != nil:
		return "", nil, false, fmt.Errorf("read address: %w", err)
	}
	return email, tokenHash, true, nil
}

// scanUser reads id, email, registered_at and verified_at, and what else the row has into rest.
func scanUser(row pgx.Row, rest ...any) (user.State, error) {
	var (
		state      user.State
		email      string
		verifiedAt *time.Time
	)
	if err := row.Scan(append([]any{&state.ID, &email, &state.RegisteredAt, &verifiedAt}, rest...)...); err != nil {
		return user.State{}, err
	}
	address, err := user.ParseAddress(email)
	if err != nil {
		return user.State{}, fmt.Errorf("read stored user %s: %w", state.ID, err)
	}
	state.Address = address
	if verifiedAt != nil {
		state.VerifiedAt = *verifiedAt
	}
	return state, nil
}

// deleteUnverified deletes users who did not verify in time, at most so many. The users are locked before their
// verifications, which go with them.
func (r repository) deleteUnverified(ctx context.Context, most int) (deleted int, err error) {
	tag, err := r.db.Exec(ctx, `
		DELETE FROM public.users WHERE id = ANY (ARRAY(
			SELECT u.id FROM public.users u
			WHERE u.verified_at IS NULL AND u.registered_at < now() - $1::interval AND NOT EXISTS (
				SELECT FROM public.email_verifications v WHERE v.user_id = u.id AND v.created_at > now() - $2::interval)
			ORDER BY u.registered_at LIMIT $3 FOR UPDATE OF u SKIP LOCKED))`,
		unverifiedLife, linkLife, most)
	if err != nil {
		return 0, fmt.Errorf("delete users: %w", err)
	}
	return int(tag.RowsAffected()), nil
}
