# Everything from a bare clone: `make run` and `make test` make .venv themselves.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := nattools tests bench examples
# What the tests of tests/lab talk to, besides namespaces
TEST_PACKAGES := nftables iproute2 util-linux coturn stun-client stun-server miniupnpd-nftables natpmpc \
	wireguard-go wireguard-tools kamailio baresip-core linphone-cli sip-tester redis-server rtpengine-daemon
FUZZ_COUNT ?= 1000000
# One more than most machines of CI have processors: many tests of tests/lab wait, and more of them would starve routers
TEST_WORKERS ?= 3
# As they are listed, tests/lab first: with a file of few slow tests as the last, all but one worker would wait for it.
TEST_ORDER := --dist loadfile --no-loadscope-reorder
# Each of the many programs that the tests start would, without bytecode, compile nattools once more.
TEST_ENVIRONMENT := PYTHONDONTWRITEBYTECODE=

.PHONY: help run test check lint types format fuzz bench clean

help:
	@echo "make run     see natcheck judge a real NAT (or loopback, where there can be no namespaces)"
	@echo "make test    all tests; as root on Debian it installs the programs that they talk to"
	@echo "make check   format, lint, types, tests: what CI runs"
	@echo "make format  format the sources"
	@echo "make fuzz    a million mutated messages against the parsers and the server"
	@echo "make bench   every measurement in bench/"

.venv/made: pyproject.toml scripts/make-venv
	@PYTHON=$(PYTHON) scripts/make-venv

run: .venv/made
	@scripts/run

test: .venv/made
	@scripts/install-packages "for the tests in tests/lab" $(TEST_PACKAGES) || echo "Their tests are skipped." >&2
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(TEST_WORKERS) $(TEST_ORDER)

check: lint types test

lint: .venv/made
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

types: .venv/made
	$(BIN)/mypy

format: .venv/made
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

fuzz: .venv/made
	$(BIN)/python -m tests.fuzz --count $(FUZZ_COUNT)

bench: .venv/made
	$(BIN)/python -m bench.decode
	$(BIN)/python -m bench.natcheck
	$(BIN)/python -m bench.verdicts
	$(BIN)/python -m bench.mapping
	$(BIN)/python -m bench.binding
	$(BIN)/python -m bench.sip
	$(BIN)/python -m bench.relay
	$(BIN)/python -m bench.calls
	$(BIN)/python -m bench.natgate_matrix
	$(BIN)/python -m bench.stund

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
