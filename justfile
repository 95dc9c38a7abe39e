# One target directory in the user's cache, so that clean checkouts share the compiled RocksDB. Every recipe
# builds the whole workspace with --release for the same reason: one profile and one set of features.

set positional-arguments

cache := env_var_or_default("XDG_CACHE_HOME", env_var_or_default("HOME", "/tmp") / ".cache") / "converge-ledger"
export CARGO_TARGET_DIR := env_var_or_default("CARGO_TARGET_DIR", cache / "target")
bin := CARGO_TARGET_DIR / "release"

[private]
default:
    @just --list --unsorted

# Build, and start one node on RocksDB in ./data, with the console; takes ledgerd's flags
run *flags: build
    @.ci/next-steps "{{bin}}/ledgerd" "$@"
    @exec "{{bin}}/ledgerd" "$@"

# Run ledgerctl against that node: `./dev ctl watch demo`
ctl *args:
    @exec "{{bin}}/ledgerctl" "$@"

# Build everything (the first time takes about 15 minutes on two cores: RocksDB)
build:
    cargo build --release --workspace

# All tests; an argument filters them by name
test *filter: build
    cargo test --release --workspace --no-fail-fast -- "$@"

# Format the code
fmt:
    cargo fmt --all

# Check format and lints
lint:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets -- --deny warnings

# Check licences, sources, duplicates and (where they can be fetched) advisories of dependencies
deny:
    @.ci/deny

# Measure one node, with the limits of this machine beside each figure, or `bench cluster`; takes ledger-bench's flags
bench *flags: build
    @exec "{{bin}}/ledger-bench" "$@"

# Fuzz everything that reads untrusted bytes, so long each
fuzz seconds="60": build
    @exec "{{bin}}/ledger-fuzz" all "{{seconds}}"

# Kill a node under load again and again for a while, checking everything after each restart
soak seconds="600" seed="1": build
    LEDGERTEST_SOAK_SECONDS="{{seconds}}" LEDGERTEST_SOAK_SEED="{{seed}}" \
        cargo test --release --workspace --test crash -- --ignored --nocapture --test-threads 1

# Simulate whole clusters with faults, each decided by a seed: --minutes N --seed S [--runs N] [--trace] [--broken NAME]
simulate *flags:
    @LEDGERTEST_SIMULATE="$*" cargo test --quiet --release --workspace --test simulate -- \
        --ignored --nocapture --exact for_a_long_time

# Real nodes in network namespaces, with faults (needs root): `--rounds N --seed S [scenario]`; --help lists them
namespaces *flags:
    @.ci/namespaces "$@"

# The Rust documentation, in the target directory's doc/
docs:
    cargo doc --release --workspace --no-deps

# Remove what was built, RocksDB included (data/ stays)
clean:
    cargo clean
