# The front door. `make test` and `make demo` are complete on a bare Debian 12; everything else is CMake (see CMakePresets.json).
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
PREFIX ?= /usr/local
export JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# Seconds that `make fuzz` spends on each target.
FUZZ_SECONDS ?= 60
# Models and texts for `make claims`; without them only the quick claims run, and docs/claims.md stays as it is.
CLAIMS_ZOO ?= ../shared/zoo
# Jobs that `make torture` kills at random moments.
TORTURE_ROUNDS ?= 200

.DEFAULT_GOAL := help
.PHONY: help deps build test test-all sanitize asan tsan fuzz test-report torture bench claims demo install package clean

help:  ## show this text
	@echo 'usage: make TARGET'
	@echo
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  %-10s %s\n' "$$name" "$$text"; done
	@echo
	@echo 'variables: PREFIX=$(PREFIX) (install), MERGEKIT_LINKS=1 (install: also mergekit-yaml, mergekit-multi), JOBS=$(JOBS), FUZZ_SECONDS=$(FUZZ_SECONDS)'

deps:  ## install the Debian packages of packages.txt that are missing
	@scripts/deps.sh

build: deps  ## build the release: build/release/bin/weft
	@scripts/build.sh release weft_command weft weft_generated_files

test: deps  ## build with our own checks on and run the tests (all but the slow ones)
	@scripts/test.sh dev -LE slow

test-all: deps  ## the same with the slow suites
	@scripts/test.sh dev

asan: deps  ## the tests under the address and undefined-behaviour sanitizers
	@scripts/test.sh asan -LE slow

tsan: deps  ## the tests under the thread sanitizer
	@scripts/test.sh tsan -LE slow

sanitize:  ## asan, then tsan
	@$(MAKE) asan
	@$(MAKE) tsan

fuzz:  ## build the fuzz targets with clang and run each for FUZZ_SECONDS
	@scripts/deps.sh clang-14 libclang-rt-14-dev
	@scripts/fuzz.sh $(FUZZ_SECONDS)

test-report: deps  ## open reports in a headless browser; screenshots go to build/dev/report
	@scripts/deps.sh chromium-headless-shell
	@scripts/build.sh dev weft_command
	@python3 scripts/report_test.py build/dev/bin/weft build/dev/report

torture: deps  ## kill jobs TORTURE_ROUNDS times, at random moments and at every step, and look at what is left
	@scripts/build.sh dev weft_command engine_tests
	@build/dev/tests/engine_tests --gtest_filter='JobKills.*:JobPower.*:JobFaults.*' --gtest_brief=1
	@python3 scripts/torture.py build/dev/bin/weft $(TORTURE_ROUNDS)

bench: deps  ## build and run the benchmarks; results go to build/release/bench
	@scripts/bench.sh

claims: deps  ## measure what the methods' papers claim, on the models of CLAIMS_ZOO; prints a table and writes docs/claims.md
	@scripts/build.sh release weft_command
	@python3 claims/ledger.py build/release/bin/weft $(if $(wildcard $(CLAIMS_ZOO)),--zoo $(CLAIMS_ZOO) --write,--quick)

demo: deps  ## look at, merge, compare and verify the models of models/
	@scripts/build.sh release weft_command
	@scripts/demo.sh

install: build  ## install below PREFIX (DESTDIR is honoured)
	@cmake --install build/release --prefix $(PREFIX)
ifeq ($(MERGEKIT_LINKS),1)
	@cmake --install build/release --prefix $(PREFIX) --component mergekit_links
endif

package:  ## make a Debian package in dist/
	@scripts/deps.sh dpkg-dev file
	@scripts/package.sh

clean:  ## remove what was built
	rm -rf build dist demo-out
