//! From a delivery to its session inside a shard: the mailbox, the slab and the timing wheel. They are the gateway's own and
//! seen by nobody else, so their sources are compiled into this bench.

#[path = "../src/mailbox.rs"]
#[allow(dead_code, unused_imports, reason = "the bench uses a part of it, and its tests are not run here")]
mod mailbox;
#[path = "../src/slab.rs"]
#[allow(dead_code, unused_imports, reason = "the bench uses a part of it, and its tests are not run here")]
mod slab;
#[path = "../src/wheel.rs"]
#[allow(dead_code, unused_imports, reason = "the bench uses a part of it, and its tests are not run here")]
mod wheel;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mailbox::Mailbox;
use slab::{Key, Slab};
use std::hint::black_box;
use wheel::Wheel;

/// Sessions of one shard; larger than any cache, as theirs are.
const SESSIONS: u32 = 100_000;
const SESSION_BYTES: usize = 288;
/// One message's deliveries to a shard.
const DELIVERIES: u64 = 1_000;

/// A walk over all slots in an order that no prefetcher guesses.
fn scattered(number: u64) -> usize {
    (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize % SESSIONS as usize
}

fn routing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shard");
    group.throughput(Throughput::Elements(DELIVERIES));
    let mut slab = Slab::new();
    let keys: Vec<Key> = (0..SESSIONS).map(|_| slab.insert([1_u8; SESSION_BYTES])).collect();
    let mut number = 0;
    group.bench_function("finds the sessions of 1,000 ids", |bencher| {
        bencher.iter(|| {
            let mut found = 0;
            for _ in 0..DELIVERIES {
                number += 1;
                found += u64::from(slab.get(keys[scattered(number)]).map_or(0, |session| session[0]));
            }
            assert_eq!(found, DELIVERIES);
        });
    });
    let mut wheel = Wheel::new(0);
    let (mut now_ms, mut due) = (0, Vec::new());
    group.bench_function("arms 1,000 deadlines and goes on by a millisecond", |bencher| {
        bencher.iter(|| {
            now_ms += 1;
            for _ in 0..DELIVERIES {
                number += 1;
                wheel.arm(scattered(number) as u32, now_ms + 25_000);
            }
            due.clear();
            wheel.advance(now_ms, &mut due);
            black_box(due.len())
        });
    });
    let mailbox = Mailbox::new(1 << 20);
    mailbox.connect(Box::new(|| {}));
    let mut letters: Vec<u64> = Vec::new();
    group.bench_function("takes 1,000 letters at once", |bencher| {
        bencher.iter(|| {
            (0..DELIVERIES).for_each(|letter| mailbox.put(letter));
            letters.clear();
            mailbox.take(&mut letters);
            assert_eq!(letters.len() as u64, DELIVERIES);
        });
    });
    group.finish();
}

criterion_group!(benches, routing);
criterion_main!(benches);
