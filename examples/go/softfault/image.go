package softfault

/*
#include <stdlib.h>
#include <softfault.h>
*/
import "C"

import (
	"encoding/hex"
	"fmt"
	"io/fs"
	"syscall"
	"time"
	"unsafe"
)

// ImageFailure says what is wrong with an image, and where.
type ImageFailure struct {
	Cause  uint32 // SOFTFAULT_IMAGE_CAUSE_*
	File   string
	Offset uint64 // the byte of the file; Unknown if it is about none
}

// lastImageFailure is for the thread that made the call.
func lastImageFailure() *ImageFailure {
	var last C.softfault_image_failure
	if C.softfault_last_image_failure(&last) != 0 {
		return nil
	}
	file := make([]byte, C.softfault_last_object(nil, 0)+1)
	C.softfault_last_object((*C.char)(unsafe.Pointer(&file[0])), C.size_t(len(file)))
	return &ImageFailure{Cause: uint32(last.cause), File: string(file[:len(file)-1]), Offset: uint64(last.file_offset)}
}

// Image is an image of memory: a snapshot. One that a runtime has opened can be restored.
type Image struct{ h *C.softfault_image }

// OpenImage opens an image, of which sessions are restored: an .sfi file, or a raw one.
func (rt *Runtime) OpenImage(path string) (*Image, error) {
	return openImage(path, func(text *C.char, out **C.softfault_image) C.int {
		return C.softfault_image_open(rt.h, text, nil, out)
	})
}

// OpenImage opens an image without a runtime: to be looked at, read, verified.
func OpenImage(path string) (*Image, error) {
	return openImage(path, func(text *C.char, out **C.softfault_image) C.int {
		return C.softfault_image_open_file(text, nil, out)
	})
}

func openImage(path string, open func(*C.char, **C.softfault_image) C.int) (*Image, error) {
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	image := new(Image)
	if err := call(func() C.int { return open(text, &image.h) }); err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return image, nil
}

// Close frees the handle. Sessions keep what they need.
func (i *Image) Close() error {
	h := i.h
	i.h = nil
	return call(func() C.int { return C.softfault_image_free(h) })
}

func (i *Image) info() (info C.softfault_image_properties, err error) {
	info.size = C.size_t(unsafe.Sizeof(info))
	err = call(func() C.int { return C.softfault_image_info(i.h, &info) })
	return info, err
}

// Size returns the image's length in bytes.
func (i *Image) Size() (uint64, error) {
	info, err := i.info()
	return uint64(info.len_bytes), err
}

// ContentDigest returns the digest of the memory, in hexadecimal; empty: the image does not know it.
func (i *Image) ContentDigest() (string, error) {
	info, err := i.info()
	if err != nil || info.flags&C.SOFTFAULT_IMAGE_HAS_CONTENT_DIGEST == 0 {
		return "", err
	}
	return hex.EncodeToString(C.GoBytes(unsafe.Pointer(&info.content_digest), 32)), nil
}

// ReadAt copies bytes, verified, without a fault and without the cache.
func (i *Image) ReadAt(p []byte, offset int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	err := call(func() C.int {
		return C.softfault_image_read_at(i.h, C.uint64_t(offset), unsafe.Pointer(&p[0]), C.size_t(len(p)))
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Verify verifies everything that has digests, as it lies in the files now.
func (i *Image) Verify() error {
	return call(func() C.int { return C.softfault_image_verify(i.h, nil, nil) })
}

// Convert writes the same memory as one file that needs no other, compressed with LZ4.
func (i *Image) Convert(path string) error {
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	options := C.softfault_image_writer_options{codec: C.SOFTFAULT_CODEC_LZ4}
	options.size = C.size_t(unsafe.Sizeof(options))
	return call(func() C.int { return C.softfault_image_convert(i.h, text, &options, nil) })
}

// Restore says what a session is to be; what is zero has its default.
type Restore struct {
	// Each region where it was.
	AtOriginalAddresses bool
	// Records what is touched first, in windows of this length, until Mark.
	Record time.Duration
	// Read before it is touched.
	Replay *WorkingSet
}

// Session is an image that is memory again: private, filled as it is touched, verified before anybody sees it.
type Session struct{ h *C.softfault_session }

// Restore makes a session. Nothing is read.
func (i *Image) Restore(r Restore) (*Session, error) {
	options := C.softfault_restore_options{record_window_ns: C.uint64_t(r.Record.Nanoseconds())}
	options.size = C.size_t(unsafe.Sizeof(options))
	if r.AtOriginalAddresses {
		options.flags = C.SOFTFAULT_RESTORE_AT_ORIGINAL_ADDRESSES
	}
	if r.Replay != nil {
		options.replay = r.Replay.h
	}
	session := new(Session)
	return session, call(func() C.int { return C.softfault_restore(i.h, &options, &session.h) })
}

// Close unmaps everything: slices of the session must not be touched any more.
func (s *Session) Close() error {
	h := s.h
	s.h = nil
	return call(func() C.int { return C.softfault_session_free(h) })
}

// Region returns where the region of that name is, and its length; "" is the first one.
func (s *Session) Region(name string) (unsafe.Pointer, int, error) {
	var index, size C.size_t
	if name != "" {
		text := C.CString(name)
		defer C.free(unsafe.Pointer(text))
		if err := call(func() C.int { return C.softfault_session_find(s.h, text, &index) }); err != nil {
			return nil, 0, err
		}
	}
	var base unsafe.Pointer
	err := call(func() C.int { return C.softfault_session_region(s.h, index, &base, &size) })
	return base, int(size), err
}

// SliceOf returns n elements of a region from offset on, good until the session is closed. T must be plain data.
func SliceOf[T any](s *Session, region string, offset, n int) ([]T, error) {
	base, size, err := s.Region(region)
	if err != nil {
		return nil, err
	}
	var element T
	if offset < 0 || n < 0 || offset > size || uintptr(n) > uintptr(size-offset)/unsafe.Sizeof(element) {
		return nil, fmt.Errorf("softfault: %d elements at %d are not in a region of %d bytes: %w", n, offset, size, syscall.EINVAL)
	}
	return unsafe.Slice((*T)(unsafe.Add(base, offset)), n), nil
}

// CachedPages returns how many pages of the image are in memory, for whichever session.
func (s *Session) CachedPages() (uint64, error) {
	progress, err := s.progress()
	return uint64(progress.cached), err
}

// Replayed returns how many pages a replay has read, and whether it is at its end.
func (s *Session) Replayed() (uint64, bool, error) {
	progress, err := s.progress()
	return uint64(progress.replayed), progress.replay_ended != 0, err
}

func (s *Session) progress() (progress C.softfault_progress, err error) {
	progress.size = C.size_t(unsafe.Sizeof(progress))
	err = call(func() C.int { return C.softfault_session_progress(s.h, &progress) })
	return progress, err
}

// Complete makes all of the session resident and verified.
func (s *Session) Complete() error {
	return call(func() C.int { return C.softfault_session_complete(s.h, nil) })
}

// Mark says that the session is ready, and returns what was touched first; nil: that was not recorded.
func (s *Session) Mark() (*WorkingSet, error) {
	set := new(WorkingSet)
	if err := call(func() C.int { return C.softfault_session_mark(s.h, &set.h) }); err != nil || set.h == nil {
		return nil, err
	}
	return set, nil
}

// WorkingSet is which pages of an image were touched first.
type WorkingSet struct{ h *C.softfault_working_set }

// Pages returns how many they are.
func (w *WorkingSet) Pages() (uint64, error) {
	var info C.softfault_working_set_properties
	info.size = C.size_t(unsafe.Sizeof(info))
	err := call(func() C.int { return C.softfault_working_set_info(w.h, &info) })
	return uint64(info.nr_pages), err
}

// Close frees the set.
func (w *WorkingSet) Close() error {
	h := w.h
	w.h = nil
	return call(func() C.int { return C.softfault_working_set_free(h) })
}
