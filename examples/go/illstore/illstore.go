//go:build illstore

// Package illstore is a store that fails as it is told, for the tests: see bindings-c/tests/languages/ill_store.h.
package illstore

/*
#cgo LDFLAGS: -lill_store
#include <ill_store.h>
*/
import "C"

import (
	"syscall"
	"unsafe"
)

// Row is what the store answers, and what has to come of it.
type Row struct {
	Answer     int
	Errno      syscall.Errno
	Cause      uint32
	StoreErrno syscall.Errno
}

// Rows returns the table: of reads and writes, or of flushes.
func Rows(isFlush bool) (rows []Row) {
	which := C.int(0)
	if isFlush {
		which = 1
	}
	for r := C.ill_row_at(0, which); r != nil; r = C.ill_row_at(C.size_t(len(rows)), which) {
		rows = append(rows, Row{int(r.answer), syscall.Errno(r.error), uint32(r.cause), syscall.Errno(r.store_errno)})
	}
	return rows
}

// Answers sets what the functions answer from now on: positive errnos, or 0.
func Answers(read, write, flush int) { C.ill_answers(C.int(read), C.int(write), C.int(flush)) }

// Operations is the *softfault_store_operations.
func Operations() unsafe.Pointer { return unsafe.Pointer(C.ill_operations()) }
