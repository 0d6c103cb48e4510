//! Generates the wire types and the gRPC services from the `.proto` files.
//!
//! protox is a protobuf compiler in Rust, so no `protoc` is needed for this crate. The descriptor
//! set is kept beside the generated code: the wire-table test reads it.
#![expect(
    clippy::disallowed_methods,
    reason = "cargo tells build scripts where to write through the environment"
)]

use prost::Message as _;

const FILES: &[&str] = &[
    "docker/swarmkit/v1/ca.proto",
    "docker/swarmkit/v1/control.proto",
    "docker/swarmkit/v1/dispatcher.proto",
    "docker/swarmkit/v1/health.proto",
    "docker/swarmkit/v1/logbroker.proto",
    "docker/swarmkit/v1/objects.proto",
    "docker/swarmkit/v1/resource.proto",
    "docker/swarmkit/v1/specs.proto",
    "docker/swarmkit/v1/types.proto",
    "docker/swarmkit/v1/watch.proto",
    "swarm/v1/images.proto",
    "swarm/v1/operator.proto",
    "swarm/v1/raft.proto",
    "swarm/v1/store.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=docker");
    println!("cargo:rerun-if-changed=swarm");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Ordered maps: anything that reaches the log or an output has one order.
        .btree_map(".")
        // Log payloads are shared, not copied, between replication, apply and the disk.
        .bytes(".swarm.v1.RaftEntry.command")
        .bytes(".swarm.v1.RaftSnapshotChunk.data")
        .bytes(".swarm.v1.ImportImagesRequest.data")
        .bytes(".swarm.v1.BackupPart.data")
        .codec_path("crate::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}
