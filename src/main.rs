//! The `tidegate` binary.

use std::process::ExitCode;

/// Workers allocate and free small buffers all day; mimalloc keeps that local to each thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tidegate::cli::run(std::env::args_os())
}
