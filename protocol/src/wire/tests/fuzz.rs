//! Seeded fuzzing on stable Rust: valid frames and records, mutated, for the same bodies as the targets of `fuzz/` have.
//! `ROOST_FUZZ_ITERATIONS` and `ROOST_FUZZ_SEED` set length and start; a failure prints its seed.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{bodies, strategies};
use crate::frames::Form;

const ITERATIONS_DEFAULT: u64 = 100_000;

/// SplitMix64: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Runs a body on mutations of the corpus. With `ROOST_FUZZ_SEEDS_TO` the corpus is also written, for the folder `fuzz/`.
fn fuzz(target: &str, part: usize, corpus: Vec<Vec<u8>>, check: impl Fn(&[u8])) {
    if let Some(folder) = std::env::var_os("ROOST_FUZZ_SEEDS_TO") {
        let folder = std::path::Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder).expect("a folder for the seeds");
        for (index, bytes) in corpus.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{part}-{index}")), bytes).expect("a seed");
        }
    }
    let seed = from_environment("ROOST_FUZZ_SEED", 1);
    for iteration in 0..from_environment("ROOST_FUZZ_ITERATIONS", ITERATIONS_DEFAULT) {
        let seed = seed.wrapping_add(iteration);
        let bytes = mutate(&corpus, &mut Random(seed));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&bytes)));
        assert!(outcome.is_ok(), "ROOST_FUZZ_SEED={seed} ROOST_FUZZ_ITERATIONS=1 fails on {bytes:x?}");
    }
}

fn mutate(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    const INTERESTING: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'\\', b'{', b'[', b',', 0x1a, 0x0b];
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = INTERESTING[random.below(INTERESTING.len())],
            2 => bytes.insert(at, INTERESTING[random.below(INTERESTING.len())]),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            4 => bytes.truncate(at),
            5 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let repeated = bytes[at..].to_vec();
                bytes.extend(repeated);
            }
        }
    }
    bytes
}

/// The same samples of a strategy at every run.
fn samples<T: Strategy>(strategy: T) -> Vec<T::Value> {
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    (0..200).map(|_| strategy.new_tree(&mut runner).expect("a sample").current()).collect()
}

#[test]
fn client_frames() {
    for form in Form::ALL {
        let corpus = samples(strategies::client_frame()).iter().map(|frame| frame.encode(form)).collect();
        fuzz("client_frames", form as usize, corpus, bodies::client_frames);
    }
}

#[test]
fn server_frames() {
    for form in Form::ALL {
        let corpus = samples(strategies::server_frame()).iter().map(|frame| frame.encode(form)).collect();
        fuzz("server_frames", form as usize, corpus, bodies::server_frames);
    }
}

#[test]
fn records() {
    let corpus = samples(strategies::ingress()).iter().map(|record| record.encode().to_vec()).collect();
    fuzz("log_records", 0, corpus, bodies::log_records);
    let corpus = samples(strategies::deliver()).iter().map(|record| record.encode().to_vec()).collect();
    fuzz("log_records", 1, corpus, bodies::log_records);
}
