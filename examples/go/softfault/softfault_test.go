package softfault

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	page  = 4096
	pages = 1024
	words = pages * page / 8
	cache = pages * page / 4
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// numbered makes a file of the words 0, 1, .., mapped through a cache of a quarter of it.
func numbered(t *testing.T) (string, *Runtime, *Object, *Arena) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "words")
	bytes := make([]byte, pages*page)
	for i := 0; i < words; i++ {
		binary.LittleEndian.PutUint64(bytes[8*i:], uint64(i))
	}
	must(t, os.WriteFile(path, bytes, 0o600))
	rt, err := New(Options{CacheLimit: cache})
	must(t, err)
	object, err := rt.Open(path, true)
	must(t, err)
	arena, err := rt.Arena(pages * page)
	must(t, err)
	must(t, arena.Map(0, object, 0, pages*page, true))
	t.Cleanup(func() {
		must(t, arena.Close())
		must(t, object.Close())
		must(t, rt.Close())
	})
	return path, rt, object, arena
}

func sum(numbers []uint64) (sum uint64) {
	for _, n := range numbers {
		sum += n
	}
	return sum
}

const want = uint64(words) * (words - 1) / 2

// recovered runs f, and returns what it panicked with.
func recovered(f func()) (what any) {
	defer func() { what = recover() }()
	f()
	return nil
}

var nowhere *int

func nilDereference() { *nowhere++ }

func isNilDereference(what any) bool {
	err, ok := what.(runtime.Error)
	return ok && strings.Contains(err.Error(), "nil pointer dereference")
}

func TestGoroutinesFault(t *testing.T) {
	_, rt, _, arena := numbered(t)
	numbers, err := Slice[uint64](arena, 0, words)
	must(t, err)
	const workers = 8
	// The collector runs meanwhile, and stops the world.
	stop := make(chan struct{})
	var collector sync.WaitGroup
	collector.Add(1)
	go func() {
		defer collector.Done()
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	for round := 0; round < 3; round++ {
		var parts [workers]uint64
		var bad [workers]bool
		var wait sync.WaitGroup
		for w := 0; w < workers; w++ {
			wait.Add(1)
			go func(w int) {
				defer wait.Done()
				for p := w; p < pages; p += workers {
					parts[w] += sum(numbers[p*page/8 : (p+1)*page/8])
					if p%64 == w {
						bad[w] = bad[w] || !isNilDereference(recovered(nilDereference))
					}
				}
			}(w)
		}
		wait.Wait()
		if got := sum(parts[:]); got != want {
			t.Errorf("round %d: sum %d, not %d", round, got, want)
		}
		for w, bad := range bad {
			if bad {
				t.Errorf("round %d: a nil dereference in worker %d did not panic", round, w)
			}
		}
	}
	close(stop)
	collector.Wait()
	cached, err := rt.Counter("nr_cached_pages")
	must(t, err)
	faults, err := rt.Counter("pgfault")
	must(t, err)
	if cached > cache/page || faults == 0 {
		t.Errorf("%d pages cached, %d faults", cached, faults)
	}
}

func TestNilDereferencesPanicBeforeDuringAndAfter(t *testing.T) {
	if !isNilDereference(recovered(nilDereference)) {
		t.Error("before")
	}
	t.Run("during", func(t *testing.T) {
		_, rt, _, arena := numbered(t)
		numbers, err := Slice[uint64](arena, 0, words)
		must(t, err)
		if numbers[words/2] != words/2 || !isNilDereference(recovered(nilDereference)) || numbers[0] != 0 {
			t.Error("during")
		}
		must(t, rt.ReinstallHandlers())
		if !isNilDereference(recovered(nilDereference)) || numbers[words-1] != words-1 {
			t.Error("after the handlers were installed again")
		}
	})
	if !isNilDereference(recovered(nilDereference)) {
		t.Error("after")
	}
}

// A goroutine that grows its stack, panics and recovers in frames that have faulted.
func TestDeepStacksAndPanics(t *testing.T) {
	_, _, _, arena := numbered(t)
	numbers, err := Slice[uint64](arena, 0, words)
	must(t, err)
	var deeper func(p int) uint64
	deeper = func(p int) uint64 {
		var frame [512]byte
		frame[p%512] = byte(p)
		if p == pages {
			panic("at the end")
		}
		return numbers[p*page/8] + deeper(p+1) + uint64(frame[(p+1)%512])
	}
	done := make(chan any)
	go func() { done <- recovered(func() { deeper(0) }) }()
	if what := <-done; what != "at the end" {
		t.Errorf("panicked with %v", what)
	}
}

func TestStoresReachTheFile(t *testing.T) {
	path, _, object, arena := numbered(t)
	numbers, err := Slice[uint64](arena, 0, words)
	must(t, err)
	for i := range numbers {
		numbers[i] *= 3
	}
	must(t, object.Sync())
	bytes, err := os.ReadFile(path)
	must(t, err)
	for i := 0; i < words; i++ {
		if got := binary.LittleEndian.Uint64(bytes[8*i:]); got != uint64(3*i) {
			t.Fatalf("word %d is %d", i, got)
		}
	}
}

func TestMapFile(t *testing.T) {
	path, rt, _, _ := numbered(t)
	arena, object, err := rt.MapFile(path, true)
	must(t, err)
	must(t, object.Close()) // the mapping keeps what it needs
	numbers, err := Slice[uint64](arena, 0, words)
	must(t, err)
	if got := sum(numbers); got != words*(words-1)/2 {
		t.Errorf("the sum is %d", got)
	}
	numbers[words-1] = 7
	must(t, arena.Close())
	if _, _, err := rt.MapFile("/no/such/file", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("map: %v", err)
	}

	empty := filepath.Join(t.TempDir(), "empty")
	must(t, os.WriteFile(empty, nil, 0o600))
	arena, object, err = rt.MapFile(empty, false)
	must(t, err)
	if size, err := object.Size(); size != 0 || err != nil {
		t.Errorf("an empty file has %d bytes, %v", size, err)
	}
	must(t, arena.Close())
	must(t, object.Close())
}

func TestErrors(t *testing.T) {
	_, rt, object, arena := numbered(t)
	_, err := rt.Open("/no/such/file", false)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("open: %v", err)
	}
	if err := arena.Map(0, object, 0, page, false); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("map: %v", err)
	}
	if _, err := Slice[uint64](arena, 0, 1<<40); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("slice: %v", err)
	}
	closed, err := rt.Anonymous(page)
	must(t, err)
	must(t, closed.Close())
	if err := closed.Close(); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("close: %v", err)
	}
	size, err := object.Size()
	if err != nil || size != pages*page {
		t.Errorf("size %d, %v", size, err)
	}
}

func TestAPageThatCannotBeHad(t *testing.T) {
	path, _, _, arena := numbered(t)
	bytes, err := Slice[byte](arena, 0, pages*page)
	must(t, err)
	must(t, os.Truncate(path, page))
	var one [1]byte
	var fault *Error
	if _, err := arena.ReadAt(one[:], 512*page); !errors.As(err, &fault) || fault.Reason == 0 {
		t.Errorf("ReadAt: %v", err)
	}
	if err := arena.FaultIn(512*page, page); !errors.Is(err, syscall.EIO) {
		t.Errorf("FaultIn: %v", err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	what := recovered(func() { one[0] = bytes[512*page] })
	if err, ok := what.(runtime.Error); !ok || !strings.Contains(err.Error(), "fault address") && !strings.Contains(err.Error(), "invalid memory address") {
		t.Errorf("the touch panicked with %v", what)
	}
	if bytes[8] != 1 {
		t.Error("a page that can be had")
	}
}

func TestSystemCallsNeedAPin(t *testing.T) {
	_, _, _, arena := numbered(t)
	bytes, err := Slice[byte](arena, 0, pages*page)
	must(t, err)
	out, err := os.Create(filepath.Join(t.TempDir(), "copy"))
	must(t, err)
	defer out.Close()
	pin, err := arena.Pin(64*page, 16*page)
	must(t, err)
	if _, err := pin.Locked(); err != nil {
		t.Error(err)
	}
	if n, err := out.Write(bytes[64*page : 80*page]); n != 16*page || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	must(t, pin.Close())
	var first [8]byte
	if _, err := out.ReadAt(first[:], 0); err != nil || binary.LittleEndian.Uint64(first[:]) != 64*page/8 {
		t.Errorf("%v, %v", first, err)
	}
}

// What a program that is about to end by os.Exit does.
func TestStoresAreInTheFileAfterWriteBack(t *testing.T) {
	if path := os.Getenv("SOFTFAULT_TEST_EXIT"); path != "" {
		rt, err := New(Options{})
		must(t, err)
		object, err := rt.Open(path, true)
		must(t, err)
		arena, err := rt.Arena(pages * page)
		must(t, err)
		must(t, arena.Map(0, object, 0, pages*page, true))
		numbers, err := Slice[uint64](arena, 0, words)
		must(t, err)
		for i := range numbers {
			numbers[i] = 7
		}
		done, err := rt.WriteBack(time.Minute)
		must(t, err)
		if !done {
			os.Exit(1)
		}
		os.Exit(0)
	}
	path := filepath.Join(t.TempDir(), "stored")
	must(t, os.WriteFile(path, make([]byte, pages*page), 0o600))
	child := exec.Command(os.Args[0], "-test.run=^TestStoresAreInTheFileAfterWriteBack$")
	child.Env = append(os.Environ(), "SOFTFAULT_TEST_EXIT="+path)
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	bytes, err := os.ReadFile(path)
	must(t, err)
	for i := 0; i < words; i++ {
		if n := binary.LittleEndian.Uint64(bytes[8*i:]); n != 7 {
			t.Fatalf("word %d is %d", i, n)
		}
	}
}
