package account

import (
	"embed"
	"io/fs"

	"postbus/internal/migrate"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations returns the tables of this package for migrate.Up.
func Migrations() migrate.Set {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the directory is embedded above
	}
	return migrate.Set{Name: "account", Schema: "public", FS: files}
}
