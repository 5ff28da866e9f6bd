package user

import (
	"encoding/json"
	"reflect"
	"testing"

	"postbus/internal/domain"
)

// The wire form of each event. Consumers elsewhere and logs of years ago hold it: to change one of these lines is to
// make a new version of the event, not to mend a test.
func TestEventWireForms(t *testing.T) {
	at := registeredAt.UTC()
	tests := []struct {
		event     domain.Event
		eventType string
		wire      string
	}{
		{
			Registered{UserID: userID, VerificationID: verificationID, RegisteredAt: at},
			"user.registered",
			`{"user_id":"0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b","verification_id":"0198a1b2-c3d4-7e5f-8a9b-ffffffffffff",` +
				`"registered_at":"2026-03-29T00:30:00.123456Z"}`,
		},
		{
			VerificationRequested{UserID: userID, VerificationID: verificationID},
			"user.verification_requested",
			`{"user_id":"0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b","verification_id":"0198a1b2-c3d4-7e5f-8a9b-ffffffffffff"}`,
		},
		{
			RegistrationRepeated{UserID: userID},
			"user.registration_repeated",
			`{"user_id":"0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"}`,
		},
		{
			EmailVerified{UserID: userID, VerifiedAt: at},
			"user.email_verified",
			`{"user_id":"0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b","verified_at":"2026-03-29T00:30:00.123456Z"}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.eventType, func(t *testing.T) {
			if got := tt.event.EventType(); got != tt.eventType {
				t.Errorf("type %q, want %q", got, tt.eventType)
			}
			if keyed, ok := tt.event.(domain.Keyed); !ok || keyed.EventKey() != userID.String() {
				t.Errorf("the event's key is not the user's id")
			}
			wire, err := json.Marshal(tt.event)
			if err != nil || string(wire) != tt.wire {
				t.Errorf("wire form %s, %v; want %s", wire, err, tt.wire)
			}
			back := reflect.New(reflect.TypeOf(tt.event))
			if err := json.Unmarshal([]byte(tt.wire), back.Interface()); err != nil {
				t.Fatalf("read the wire form: %v", err)
			}
			if !reflect.DeepEqual(back.Elem().Interface(), tt.event) {
				t.Errorf("read back %+v, want %+v", back.Elem().Interface(), tt.event)
			}
		})
	}
}
