//! The encodings against prost, against themselves, and against hostile bytes.

mod against_prost;
mod bodies;
mod fuzz;
mod hostile;
mod json_client;
mod round_trip;
mod strategies;
