package softfault

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// snapshot makes an image of the words 0, 1, ..: a raw file, and the same compressed and with digests.
func snapshot(t *testing.T) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "memory.raw")
	bytes := make([]byte, pages*page)
	for i := 0; i < words; i++ {
		binary.LittleEndian.PutUint64(bytes[8*i:], uint64(i))
	}
	must(t, os.WriteFile(raw, bytes, 0o600))
	image, err := OpenImage(raw)
	must(t, err)
	defer image.Close()
	path := filepath.Join(filepath.Dir(raw), "memory.sfi")
	must(t, image.Convert(path))
	return path
}

func TestSessions(t *testing.T) {
	rt, err := New(Options{})
	must(t, err)
	defer rt.Close()
	image, err := rt.OpenImage(snapshot(t))
	must(t, err)
	defer image.Close()
	size, err := image.Size()
	must(t, err)
	digest, err := image.ContentDigest()
	must(t, err)
	if size != pages*page || len(digest) != 64 {
		t.Fatalf("%d bytes, digest %q", size, digest)
	}
	must(t, image.Verify())
	word := make([]byte, 8)
	if _, err := image.ReadAt(word, 8*77); err != nil || binary.LittleEndian.Uint64(word) != 77 {
		t.Fatal(err, word)
	}

	one, err := image.Restore(Restore{})
	must(t, err)
	two, err := image.Restore(Restore{})
	must(t, err)
	if cached, err := one.CachedPages(); err != nil || cached != 0 {
		t.Fatalf("%d pages are cached before the first touch (%v)", cached, err)
	}
	mine, err := SliceOf[uint64](one, "", 0, words)
	must(t, err)
	if mine[5] != 5 {
		t.Fatal(mine[5])
	}
	if cached, err := one.CachedPages(); err != nil || cached == 0 || cached >= pages {
		t.Fatalf("%d pages are cached after the first touch (%v)", cached, err)
	}
	for i := range mine {
		mine[i]++
	}
	theirs, err := SliceOf[uint64](two, "", 0, words)
	must(t, err)
	if sum(theirs) != want || sum(mine) != want+words {
		t.Fatal("one session sees what the other stored")
	}
	if _, err := SliceOf[uint64](two, "", 8, words); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	if _, _, err := two.Region("stack"); !errors.Is(err, syscall.ENOENT) {
		t.Fatal(err)
	}
	must(t, two.Complete())
	must(t, two.Close())
	must(t, one.Close())
}

func TestWorkingSets(t *testing.T) {
	rt, err := New(Options{})
	must(t, err)
	defer rt.Close()
	image, err := rt.OpenImage(snapshot(t))
	must(t, err)
	defer image.Close()
	recorded, err := image.Restore(Restore{Record: time.Millisecond})
	must(t, err)
	numbers, err := SliceOf[uint64](recorded, "", 0, words)
	must(t, err)
	if numbers[3*page/8] != 3*page/8 {
		t.Fatal(numbers[3*page/8])
	}
	set, err := recorded.Mark()
	must(t, err)
	if nr, err := set.Pages(); err != nil || nr != 1 {
		t.Fatalf("%d pages were touched (%v)", nr, err)
	}
	must(t, recorded.Close())

	session, err := image.Restore(Restore{Replay: set})
	must(t, err)
	for {
		nr, ended, err := session.Replayed()
		must(t, err)
		if ended {
			if nr == 0 {
				t.Fatal("nothing was replayed")
			}
			break
		}
		time.Sleep(time.Millisecond)
	}
	if none, err := session.Mark(); none != nil || err != nil {
		t.Fatal(none, err)
	}
	must(t, session.Close())
	must(t, set.Close())
}

func TestDamageIsNamed(t *testing.T) {
	path := snapshot(t)
	bytes, err := os.ReadFile(path)
	must(t, err)
	bytes[len(bytes)/2] ^= 1
	must(t, os.WriteFile(path, bytes, 0o600))
	image, err := OpenImage(path)
	must(t, err)
	defer image.Close()
	var failed *Error
	if err := image.Verify(); !errors.As(err, &failed) || failed.Errno != syscall.EBADMSG || failed.Image == nil {
		t.Fatal(err)
	}
	if failed.Image.File != path || failed.Image.Offset > uint64(len(bytes)/2) {
		t.Fatal(failed.Image)
	}
	if _, err := OpenImage(path + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if _, err := image.Restore(Restore{}); !errors.Is(err, syscall.EINVAL) {
		t.Fatal("an image without a runtime was restored")
	}
}
