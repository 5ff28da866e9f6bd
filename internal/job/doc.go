// Package job is the work table.
package job
