//go:build illstore

package softfault

import (
	"errors"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/softfault/softfault/examples/go/illstore"
)

// SOFTFAULT_ERROR_*, SOFTFAULT_FAILED_TOUCH.
const (
	kindFault     = 7
	kindWriteback = 11
	kindFlush     = 12
	failedTouch   = 4
)

// What a store said is in the errors, and of a touch that became a panic among the failures.
func TestCauses(t *testing.T) {
	rt, err := New(Options{CacheLimit: 4 << 20})
	must(t, err)
	object, err := rt.FromStore(16*page, illstore.Operations(), nil, "the ill one", true)
	must(t, err)
	arena, err := rt.Arena(16 * page)
	must(t, err)
	// Page 5 of the object is page 6 of the arena; nothing but page 9 is dirty.
	must(t, arena.Map(3*page, object, 2*page, 8*page, true))
	bytes, err := Slice[byte](arena, 0, 16*page)
	must(t, err)
	fails := func(err error, want illstore.Row, kind uint32, at, inArena uint64) {
		t.Helper()
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, want.Errno) || e.Kind != kind || e.Fault == nil {
			t.Fatalf("%+v gave %#v", want, err)
		}
		if *e.Fault != (Fault{want.Cause, want.StoreErrno, "the ill one", at, inArena}) {
			t.Fatalf("%+v gave %+v", want, *e.Fault)
		}
		if !strings.Contains(e.Error(), "the ill one") {
			t.Fatal(e.Error())
		}
	}
	touched := func(want illstore.Row) bool {
		last, err := rt.RecentFailures()
		must(t, err)
		base, err := arena.Base()
		must(t, err)
		for _, f := range last {
			if f.Op == failedTouch && f.Cause == want.Cause && f.StoreErrno == want.StoreErrno && f.Object == "the ill one" &&
				f.ObjectOffset == 5*page && f.Address/page == uintptr(base)/page+6 {
				return true
			}
		}
		return false
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	flushes := illstore.Rows(true)
	rows := illstore.Rows(false)
	if len(rows) < 10 {
		t.Fatalf("%d rows", len(rows))
	}
	for i, row := range rows {
		var one [1]byte
		illstore.Answers(row.Answer, 0, 0)
		_, err := arena.ReadAt(one[:], 6*page+2)
		fails(err, row, kindFault, 5*page+2, 6*page+2)
		fails(arena.FaultIn(6*page, page), row, kindFault, 5*page, 6*page)
		if _, ok := recovered(func() { one[0] = bytes[6*page+9] }).(runtime.Error); !ok {
			t.Fatalf("%+v: the touch did not panic", row)
		}
		for tries := 0; !touched(row); tries++ {
			if tries == 1000 {
				t.Fatalf("%+v: the touch is not among the failures", row)
			}
			time.Sleep(10 * time.Millisecond)
		}

		illstore.Answers(0, 0, 0)
		_, err = arena.WriteAt([]byte{1}, 10*page)
		must(t, err)
		illstore.Answers(0, row.Answer, 0)
		fails(object.Sync(), row, kindWriteback, 9*page, Unknown)
		illstore.Answers(0, 0, row.Answer)
		fails(object.Sync(), flushes[i], kindFlush, Unknown, Unknown)
		illstore.Answers(0, 0, 0)
		must(t, object.Sync())
	}
	var e *Error
	if _, err := rt.Open("/no/such/file", false); !errors.As(err, &e) || e.Fault != nil || e.Errno != syscall.ENOENT {
		t.Errorf("open: %v", err)
	}
	must(t, arena.Close())
	must(t, object.Close())
	must(t, rt.Close())
}
