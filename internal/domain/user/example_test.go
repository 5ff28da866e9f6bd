package user_test

import (
	"errors"
	"fmt"

	"postbus/internal/domain/user"
)

func ExampleParseAddress() {
	a, err := user.ParseAddress(" Anna.Smit@Bücher.example ")
	fmt.Println(a, a.Canonical(), err)

	_, err = user.ParseAddress("Anna Smit <anna@example.com>")
	var refused *user.AddressError
	if errors.As(err, &refused) {
		fmt.Println(refused.Reason)
	}
	// Output:
	// Anna.Smit@xn--bcher-kva.example anna.smit@xn--bcher-kva.example <nil>
	// Please enter only the address, without a name and without < and >.
}
