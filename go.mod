module github.com/capdrift/capdrift

go 1.26.0

require github.com/moby/sys/capability v0.5.0 // indirect
