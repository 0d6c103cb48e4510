//! Limits of the kernel that a container's processes may be given.

/// What they are called: the names that Docker takes, without the kernel's `RLIMIT_`.
pub const NAMES: &[&str] = &[
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];
