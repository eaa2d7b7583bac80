//! The WebSocket codec: frames decoded in the receive buffer, whole and in pieces, and frame headers written.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use roost_session::framing::websocket::{Decoder, Event, Limits, Opcode, encode_frame};
use std::hint::black_box;

const MASK: [u8; 4] = [0x5a, 0x17, 0xc3, 0x88];
const LIMITS: Limits = Limits { message_bytes_max: 256 * 1024, message_fragments_max: 1024 };

/// A client's binary frame.
fn masked(payload_bytes: usize) -> Vec<u8> {
    let mut frame = vec![0x82];
    match u16::try_from(payload_bytes) {
        Ok(length @ 0..=125) => frame.push(0x80 | length as u8),
        Ok(length) => {
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
        Err(_) => {
            frame.push(0x80 | 127);
            frame.extend((payload_bytes as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend((0..payload_bytes).map(|at| at as u8 ^ MASK[at % 4]));
    frame
}

/// How many bytes of payload came out, so that nothing is left out.
fn decode(decoder: &mut Decoder, mut bytes: &mut [u8]) -> usize {
    let mut payload_bytes = 0;
    while let Some(event) = decoder.next(&mut bytes, &LIMITS).expect("the frames are in order") {
        if let Event::Message { payload, .. } = event {
            payload_bytes += payload.len();
        }
    }
    payload_bytes
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for payload_bytes in [16, 128, 4 * 1024, 64 * 1024] {
        let frame = masked(payload_bytes);
        group.throughput(Throughput::Bytes(payload_bytes as u64));
        group.bench_function(format!("whole, {payload_bytes} bytes"), |bencher| {
            // Unmasking writes into the buffer, so each run has its own copy; making it is not measured.
            bencher.iter_batched_ref(
                || (Decoder::new(), frame.clone()),
                |(decoder, frame)| assert_eq!(decode(decoder, frame), payload_bytes),
                BatchSize::SmallInput,
            );
        });
    }
    let frame = masked(4 * 1024);
    group.throughput(Throughput::Bytes(4 * 1024));
    group.bench_function("in 4 pieces, 4096 bytes", |bencher| {
        bencher.iter_batched_ref(
            || (Decoder::new(), frame.clone()),
            |(decoder, frame)| {
                let pieces = frame.len().div_ceil(4);
                let taken: usize = frame.chunks_mut(pieces).map(|piece| decode(decoder, piece)).sum();
                assert_eq!(taken, 4 * 1024);
            },
            BatchSize::SmallInput,
        );
    });
    let frames = masked(16).repeat(64);
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 small frames in one buffer", |bencher| {
        bencher.iter_batched_ref(
            || (Decoder::new(), frames.clone()),
            |(decoder, frames)| assert_eq!(decode(decoder, frames), 64 * 16),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    for payload_bytes in [16, 128, 64 * 1024] {
        let payload = vec![7; payload_bytes];
        group.throughput(Throughput::Bytes(payload_bytes as u64));
        group.bench_function(format!("{payload_bytes} bytes"), |bencher| {
            bencher.iter(|| {
                encode_frame(Opcode::Binary, payload_bytes, |frame| frame.extend_from_slice(black_box(&payload)))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decoding, encoding);
criterion_main!(benches);
