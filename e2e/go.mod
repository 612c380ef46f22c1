module github.com/capdrift/capdrift/e2e

go 1.26.0
