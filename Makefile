.PHONY: help deb demo test check lint unit quick bench format proto measure
help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'
demo:  ## one sandbox through its whole life, on this machine
	./scripts/demo
test:  ## every test tier
	./scripts/test
check:  ## what to run before each commit: format, lint, types, unit, in a minute
	@./scripts/check
lint:  ## ruff, mypy, import-linter, stale generated code
	./scripts/test lint
unit:  ## pure code and the rules of the house
	.venv/bin/python -m pytest -q tests/unit tests/repo
quick:  ## the tiers without real machines or networks
	./scripts/test unit repo scenario
measure:  ## levels, imports and sizes of the code
	@.venv/bin/python -m tests.repo.measure
deb:  ## Debian's package, a wheel and a source archive, into dist/
	./scripts/prepare-host --package
	./packaging/build-deb
bench:  ## measure against plain libvirt and others; bench/report.html shows it
	./scripts/bench
format:  ## let ruff format the code
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .
proto:  ## generate vmdriver/_proto anew
	./scripts/generate-proto
