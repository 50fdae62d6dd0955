// The first steps: a file four times as large as the cache it is mapped through, summed by goroutines over a slice, with a
// nil dereference in between, which is Go's as ever.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"github.com/softfault/softfault/examples/go/softfault"
)

const (
	size    = 32 << 20
	cache   = size / 4
	workers = 8
)

func makeFile() (string, uint64, error) {
	f, err := os.CreateTemp("", "softfault-go-")
	if err != nil {
		return "", 0, err
	}
	out, sum := bufio.NewWriter(f), uint64(0)
	var word [8]byte
	for i := uint64(0); i < size/8; i++ {
		n := i * 0x9e3779b97f4a7c15
		sum += n
		binary.LittleEndian.PutUint64(word[:], n)
		out.Write(word[:])
	}
	if err := out.Flush(); err != nil {
		return "", 0, err
	}
	return f.Name(), sum, f.Close()
}

func sum(numbers []uint64) uint64 {
	parts := make([]uint64, workers)
	var wait sync.WaitGroup
	for w := range parts {
		wait.Add(1)
		go func(part *uint64, mine []uint64) {
			defer wait.Done()
			for _, n := range mine { // each first touch is a fault, resolved in this goroutine's thread
				*part += n
			}
		}(&parts[w], numbers[w*len(numbers)/workers:(w+1)*len(numbers)/workers])
	}
	wait.Wait()
	total := uint64(0)
	for _, part := range parts {
		total += part
	}
	return total
}

func nilDereference() (recovered any) {
	defer func() { recovered = recover() }()
	var nowhere *uint64
	return *nowhere
}

func run() error {
	path, want, err := makeFile()
	if err != nil {
		return err
	}
	defer os.Remove(path)

	rt, err := softfault.New(softfault.Options{CacheLimit: cache})
	if err != nil {
		return err
	}
	defer rt.Close()
	file, err := rt.Open(path, false)
	if err != nil {
		return err
	}
	defer file.Close()
	arena, err := rt.Arena(size)
	if err != nil {
		return err
	}
	defer arena.Close()
	if err := arena.Map(0, file, 0, size, false); err != nil {
		return err
	}
	numbers, err := softfault.Slice[uint64](arena, 0, size/8)
	if err != nil {
		return err
	}

	first := sum(numbers)
	recovered := nilDereference()
	second := sum(numbers)

	faults, err := rt.Counter("pgfault")
	if err != nil {
		return err
	}
	fmt.Printf("%d MiB through a cache of %d MiB: %d faults\n", size>>20, cache>>20, faults)
	if _, isError := recovered.(error); !isError {
		return fmt.Errorf("a nil dereference gave %v", recovered)
	}
	fmt.Println("recovered:", recovered)
	if first != want || second != want {
		return fmt.Errorf("the sums are %d and %d, not %d", first, second, want)
	}
	fmt.Println("both sums are right")
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
