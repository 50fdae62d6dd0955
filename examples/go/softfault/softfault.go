// Package softfault resolves page faults in this process: files and memory larger than the cache they are seen through, as
// slices. It is cgo over softfault.h, whose comments say what each function does.
//
// A slice of an arena is memory that Go's collector does not know: it is good until the arena is closed, and holds plain
// data, no Go pointers. Goroutines may touch it freely. System calls may not, unless the range is pinned: they fail with
// EFAULT where a page is not resident.
//
// Go's own handling of SIGSEGV and SIGBUS stays: what is not about an arena goes on to it. A page that cannot be had is
// "unexpected fault address", which ends the program unless debug.SetPanicOnFault is on in the goroutine; ReadAt and FaultIn
// return errors instead: an Error has the errno of the store, and its Fault says where. What a panic was about is the last of
// RecentFailures.
//
// There are no stores in Go (FromStore takes those of C). They would run while a thread waits inside a load instruction, and the scheduler may want that
// very thread.
package softfault

/*
#cgo LDFLAGS: -lsoftfault
#include <stdlib.h>
#include <softfault.h>
*/
import "C"

import (
	"fmt"
	"io/fs"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

// Error is what a call that failed left behind. errors.Is compares with its errno.
type Error struct {
	Errno  syscall.Errno
	Kind   uint32 // SOFTFAULT_ERROR_*
	Reason uint32 // SOFTFAULT_VM_FAULT_*, for a page that could not be had
	Words  string
	Fault  *Fault        // for a page that could not be had, or was not written; else nil
	Image  *ImageFailure // for an image that is not what it should be; else nil
}

// Unknown is an offset that is not known, or that there is none of.
const Unknown = ^uint64(0)

// Fault says why, and where, a page could not be had, or was not written.
type Fault struct {
	Cause        uint32        // SOFTFAULT_CAUSE_*
	StoreErrno   syscall.Errno // 0 if the store gave none
	Object       string        // its label, or the path of its file
	ObjectOffset uint64
	ArenaOffset  uint64 // the same byte; Unknown for calls on objects
}

// lastFault is for the thread that made the call.
func lastFault() *Fault {
	var last C.softfault_fault
	if C.softfault_last_fault(&last) != 0 {
		return nil
	}
	label := make([]byte, C.softfault_last_object(nil, 0)+1)
	C.softfault_last_object((*C.char)(unsafe.Pointer(&label[0])), C.size_t(len(label)))
	return &Fault{
		Cause:        uint32(last.cause),
		StoreErrno:   syscall.Errno(last.store_errno),
		Object:       string(label[:len(label)-1]),
		ObjectOffset: uint64(last.object_offset),
		ArenaOffset:  uint64(last.arena_offset),
	}
}

func (e *Error) Error() string { return "softfault: " + e.Words }

func (e *Error) Unwrap() error { return e.Errno }

// call makes a call and, if it fails, asks for the words on the thread that made it.
func call(f func() C.int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	result := f()
	if result == 0 {
		return nil
	}
	words := make([]byte, C.softfault_last_error(nil, 0)+1)
	C.softfault_last_error((*C.char)(unsafe.Pointer(&words[0])), C.size_t(len(words)))
	return &Error{
		Errno:  syscall.Errno(-result),
		Kind:   uint32(C.softfault_last_error_kind()),
		Reason: uint32(C.softfault_last_fault_reason()),
		Words:  string(words[:len(words)-1]),
		Fault:  lastFault(),
		Image:  lastImageFailure(),
	}
}

// Runtime is a cache, its counters, its threads. Handles are names, not addresses: to cgo, pointers to incomplete types,
// which the collector leaves alone.
type Runtime struct{ h *C.softfault_runtime }

// Options of a runtime; what is 0 has its default.
type Options struct {
	CacheLimit uint64
	// A file or a folder for anonymous memory that leaves the cache, and its size.
	SwapPath  string
	SwapBytes uint64
	// What is cached is locked in memory (mlock); RLIMIT_MEMLOCK must permit it.
	LockCache bool
	// A touch that becomes SIGBUS or SIGSEGV writes a line to standard error that says why.
	ReportSignals bool
}

// New makes a runtime, and puts handlers for SIGBUS and SIGSEGV in front of Go's.
func New(o Options) (*Runtime, error) {
	options := C.softfault_runtime_options{cache_limit_bytes: C.uint64_t(o.CacheLimit)}
	options.size = C.size_t(unsafe.Sizeof(options))
	if o.SwapPath != "" {
		options.swap_path = C.CString(o.SwapPath)
		defer C.free(unsafe.Pointer(options.swap_path))
		options.swap_bytes = C.uint64_t(o.SwapBytes)
	}
	if o.LockCache {
		options.flags |= C.SOFTFAULT_RUNTIME_LOCK_CACHE
	}
	if o.ReportSignals {
		options.flags |= C.SOFTFAULT_RUNTIME_REPORT_SIGNALS
	}
	rt := new(Runtime)
	return rt, call(func() C.int { return C.softfault_runtime_new(&options, &rt.h) })
}

// Close frees the handle; the runtime ends with the last of its objects and arenas.
func (rt *Runtime) Close() error {
	h := rt.h
	rt.h = nil
	return call(func() C.int { return C.softfault_runtime_free(h) })
}

// WriteBack writes everything that was stored before the call to the files of all objects, without making it durable; false:
// not within the timeout. Go programs end without exit(3), by os.Exit or the return of main: what was stored since the last
// Sync and is neither written back nor closed then is lost.
func (rt *Runtime) WriteBack(timeout time.Duration) (bool, error) {
	var done C.bool
	err := call(func() C.int { return C.softfault_runtime_write_back(rt.h, C.uint64_t(timeout.Nanoseconds()), &done) })
	return bool(done), err
}

// ReinstallHandlers puts softfault's signal handlers in front again, after a C library has installed its own.
func (rt *Runtime) ReinstallHandlers() error {
	return call(func() C.int { return C.softfault_reinstall_handlers(rt.h) })
}

// Counter returns a counter by its name: "pgfault", "pgmajfault", "nr_cached_pages".
func (rt *Runtime) Counter(name string) (uint64, error) {
	var stats *C.softfault_stats
	if err := call(func() C.int { return C.softfault_stats_read(rt.h, &stats) }); err != nil {
		return 0, err
	}
	defer C.softfault_stats_free(stats)
	text := C.CString(name)
	defer C.free(unsafe.Pointer(text))
	var value C.uint64_t
	err := call(func() C.int { return C.softfault_stats_get(stats, text, &value) })
	return uint64(value), err
}

// Failure is one of a runtime's last failures.
type Failure struct {
	Number       uint64 // counts them: a gap means that some were not kept
	Op           uint32 // SOFTFAULT_FAILED_*
	Cause        uint32 // SOFTFAULT_CAUSE_*
	StoreErrno   syscall.Errno
	Object       string
	ObjectOffset uint64
	Address      uintptr // what was touched; 0: nothing was
	Age          time.Duration
}

// RecentFailures returns the last failures, oldest first: of stores, whoever was told, and touches that became signals.
func (rt *Runtime) RecentFailures() ([]Failure, error) {
	var last [64]C.softfault_failure
	var all C.size_t
	err := call(func() C.int { return C.softfault_runtime_recent_failures(rt.h, &last[0], C.size_t(len(last)), &all) })
	if err != nil {
		return nil, err
	}
	if int(all) > len(last) {
		all = C.size_t(len(last))
	}
	failures := make([]Failure, 0, all)
	for i := range last[:all] {
		f := &last[i]
		failures = append(failures, Failure{
			Number:       uint64(f.number),
			Op:           uint32(f.op),
			Cause:        uint32(f.cause),
			StoreErrno:   syscall.Errno(f.store_errno),
			Object:       C.GoString(&f.object[0]),
			ObjectOffset: uint64(f.object_offset),
			Address:      uintptr(f.address),
			Age:          time.Duration(f.age_ns),
		})
	}
	return failures, nil
}

// Object is bytes that can be mapped: a file, or memory. It lives as long as it is mapped.
type Object struct{ h *C.softfault_object }

func objectOptions(writable bool) (options C.softfault_object_options) {
	options.size = C.size_t(unsafe.Sizeof(options))
	if writable {
		options.flags = C.SOFTFAULT_OBJECT_WRITABLE
	}
	return options
}

// Open opens a file.
func (rt *Runtime) Open(path string, writable bool) (*Object, error) {
	options := objectOptions(writable)
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	object := new(Object)
	if err := call(func() C.int { return C.softfault_object_open(rt.h, text, &options, &object.h) }); err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return object, nil
}

// MapFile opens a file and maps it whole, shared, from the arena's offset 0 on, as mmap(2) does.
func (rt *Runtime) MapFile(path string, writable bool) (*Arena, *Object, error) {
	options := objectOptions(writable)
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	arena, object := new(Arena), new(Object)
	err := call(func() C.int { return C.softfault_arena_map_file(rt.h, text, &options, &arena.h, &object.h) })
	if err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return arena, object, nil
}

// Anonymous makes memory, which begins as zeros. It leaves the cache only where there is swap.
func (rt *Runtime) Anonymous(size uint64) (*Object, error) {
	object := new(Object)
	return object, call(func() C.int { return C.softfault_object_anonymous(rt.h, C.uint64_t(size), nil, &object.h) })
}

// FromStore makes an object over a store that is written in C: operations is a *softfault_store_operations, ctx what its
// functions get. Functions of Go must not be among them.
func (rt *Runtime) FromStore(size uint64, operations, ctx unsafe.Pointer, label string, writable bool) (*Object, error) {
	options := objectOptions(writable)
	if label != "" {
		options.label = C.CString(label)
		defer C.free(unsafe.Pointer(options.label))
	}
	object := new(Object)
	return object, call(func() C.int {
		return C.softfault_object_from_store(rt.h, C.uint64_t(size), (*C.softfault_store_operations)(operations), ctx,
			&options, &object.h)
	})
}

// Close frees the handle. What is dirty at the object's end is written back, but nobody hears of errors: Sync before.
func (o *Object) Close() error {
	h := o.h
	o.h = nil
	return call(func() C.int { return C.softfault_object_free(h) })
}

// Size returns the end of the object.
func (o *Object) Size() (uint64, error) {
	var size C.uint64_t
	err := call(func() C.int { return C.softfault_object_len(o.h, &size) })
	return uint64(size), err
}

// Sync makes durable what was written before the call.
func (o *Object) Sync() error {
	return call(func() C.int { return C.softfault_object_sync_all(o.h) })
}

// Arena is a range of address space, over which objects are mapped.
type Arena struct{ h *C.softfault_arena }

// Arena reserves address space, rounded up to 2 MiB.
func (rt *Runtime) Arena(size int) (*Arena, error) {
	arena := new(Arena)
	return arena, call(func() C.int { return C.softfault_arena_new(rt.h, C.size_t(size), nil, &arena.h) })
}

// Close unmaps everything: slices of the arena must not be touched any more.
func (a *Arena) Close() error {
	h := a.h
	a.h = nil
	return call(func() C.int { return C.softfault_arena_free(h) })
}

// Map maps size bytes of the object from objectOffset on, shared, at offset.
func (a *Arena) Map(offset int, o *Object, objectOffset uint64, size int, writable bool) error {
	prot := C.uint32_t(C.SOFTFAULT_PROT_READ)
	if writable {
		prot |= C.SOFTFAULT_PROT_WRITE
	}
	return call(func() C.int {
		return C.softfault_arena_map(a.h, C.size_t(offset), o.h, C.uint64_t(objectOffset), C.size_t(size), prot,
			C.SOFTFAULT_MAP_SHARED)
	})
}

// Base returns the arena's first address.
func (a *Arena) Base() (unsafe.Pointer, error) {
	var base unsafe.Pointer
	err := call(func() C.int { return C.softfault_arena_base(a.h, &base) })
	return base, err
}

// Slice returns n elements from offset on. They must be mapped; T must be plain data, and offset suit its alignment.
func Slice[T any](a *Arena, offset, n int) ([]T, error) {
	base, err := a.Base()
	if err != nil {
		return nil, err
	}
	var size C.size_t
	if err := call(func() C.int { return C.softfault_arena_len(a.h, &size) }); err != nil {
		return nil, err
	}
	var element T
	length := int(size)
	if offset < 0 || n < 0 || offset > length || uintptr(n) > uintptr(length-offset)/unsafe.Sizeof(element) {
		return nil, fmt.Errorf("softfault: %d elements at %d are not in an arena of %d bytes: %w", n, offset, length, syscall.EINVAL)
	}
	return unsafe.Slice((*T)(unsafe.Add(base, offset)), n), nil
}

// ReadAt copies mapped bytes; what cannot be had is an error instead of a signal.
func (a *Arena) ReadAt(p []byte, offset int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	err := call(func() C.int {
		return C.softfault_arena_read_at(a.h, C.size_t(offset), unsafe.Pointer(&p[0]), C.size_t(len(p)))
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt copies to mapped bytes; what cannot be had is an error instead of a signal.
func (a *Arena) WriteAt(p []byte, offset int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	err := call(func() C.int {
		return C.softfault_arena_write_at(a.h, C.size_t(offset), unsafe.Pointer(&p[0]), C.size_t(len(p)))
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// FaultIn makes the range resident, for as long as there is room, or says why it cannot be.
func (a *Arena) FaultIn(offset, size int) error {
	return call(func() C.int {
		return C.softfault_arena_fault_in(a.h, C.size_t(offset), C.size_t(size), C.SOFTFAULT_ACCESS_READ)
	})
}

// Pin keeps a range resident: system calls may be given it.
type Pin struct{ h *C.softfault_pin }

// Pin pins the range for reading.
func (a *Arena) Pin(offset, size int) (*Pin, error) {
	pin := new(Pin)
	return pin, call(func() C.int {
		return C.softfault_arena_pin(a.h, C.size_t(offset), C.size_t(size), C.SOFTFAULT_ACCESS_READ, &pin.h)
	})
}

// Locked says whether the range is locked in memory, and does not merely stay cached.
func (p *Pin) Locked() (bool, error) {
	var locked C.bool
	err := call(func() C.int { return C.softfault_pin_is_locked(p.h, &locked) })
	return bool(locked), err
}

// Close lets the range go.
func (p *Pin) Close() error {
	h := p.h
	p.h = nil
	return call(func() C.int { return C.softfault_pin_free(h) })
}
