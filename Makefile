.PHONY: help demo test check lint unit bench format proto
help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'
demo:  ## one sandbox through its whole life, on this machine
	./scripts/demo
test:  ## every test tier
	./scripts/test
check: lint unit  ## what to run before each commit
lint:  ## ruff, mypy, import-linter, stale generated code
	./scripts/test lint
unit:  ## the quick tiers
	./scripts/test unit scenario repo
bench:  ## measure against plain libvirt
	./scripts/bench
format:  ## let ruff format the code
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .
proto:  ## generate vmdriver/_proto anew
	./scripts/generate-proto
