module github.com/softfault/softfault/examples/go

go 1.19
