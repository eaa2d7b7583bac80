//! The encodings: protobuf by hand where the hot path needs it and by prost elsewhere, JSON by serde.
