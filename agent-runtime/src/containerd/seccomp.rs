//! The system calls of a container: an allow list after Docker's default profile; whatever is not
//! on it fails with EPERM, and calls newer than the list with ENOSYS through libseccomp.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::error::Error;

/// Allowed for every container.
const ALWAYS: &str = "
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate
fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync
ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups
getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt
get_thread_area gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents
io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount
listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise
map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64
mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock
munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open
pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64
preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam
sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64
sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid
setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32
setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask
sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat
sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask
uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid
waitpid write writev arch_prctl modify_ldt ptrace process_vm_readv process_vm_writev
";

/// What programs of 32 bits need beside that on an ARM host.
const ON_ARM: &str =
    "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";

/// Allowed to containers that hold a capability.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie \
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog \
         umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    (
        "CAP_SYS_TIME",
        "settimeofday stime clock_settime clock_settime64",
    ),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Every bit of `clone`'s flags that makes a namespace: refused without CAP_SYS_ADMIN.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// `AF_VSOCK`: reaches the hypervisor, past every network namespace.
const AF_VSOCK: u64 = 40;

/// Docker's default profile for a container with these capabilities, as `linux.seccomp`.
pub(super) fn default_profile(capabilities: &BTreeSet<&'static str>) -> Value {
    let mut names: Vec<&str> = ALWAYS.split_whitespace().collect();
    if std::env::consts::ARCH == "aarch64" {
        names.extend(ON_ARM.split_whitespace());
    }
    for (capability, calls) in BY_CAPABILITY {
        if capabilities.contains(capability) {
            names.extend(calls.split_whitespace());
        }
    }
    let mut calls = vec![
        json!({ "names": names, "action": "SCMP_ACT_ALLOW" }),
        json!({ "names": ["socket"], "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE" }] }),
    ];
    // 0: Linux, 8: Linux 32, 0x20000: UNAME26, 0x20008: both, 0xffffffff: asks.
    for persona in [0u64, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        calls.push(
            json!({ "names": ["personality"], "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": persona, "op": "SCMP_CMP_EQ" }] }),
        );
    }
    if !capabilities.contains("CAP_SYS_ADMIN") {
        calls.push(json!({ "names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0,
                "op": "SCMP_CMP_MASKED_EQ" }] }));
        // Its flags are in memory, out of reach of a filter: ENOSYS makes libc fall back to clone.
        calls.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures(),
        "syscalls": calls,
    })
}

fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        // Without a list, libseccomp takes the native one.
        _ => &[],
    }
}

/// A profile of the operator's, in Docker's file format.
pub(super) fn custom_profile(
    profile: &[u8],
    capabilities: &BTreeSet<&'static str>,
) -> Result<Value, Error> {
    let bad = |reason: &str| Error::Fatal(format!("seccomp profile: {reason}"));
    let mut parsed: Value =
        serde_json::from_slice(profile).map_err(|error| bad(&error.to_string()))?;
    let object = parsed
        .as_object_mut()
        .ok_or_else(|| bad("it is no JSON object"))?;
    if !object.contains_key("defaultAction") {
        return Err(bad("it has no defaultAction"));
    }
    // Docker's own fields, which the OCI runtime spec has not.
    if object.remove("archMap").is_some() {
        object.insert("architectures".to_owned(), json!(architectures()));
    }
    if let Some(calls) = object.get_mut("syscalls").and_then(Value::as_array_mut) {
        calls.retain(|call| applies(call, capabilities));
        for call in calls.iter_mut().filter_map(Value::as_object_mut) {
            for field in ["includes", "excludes", "comment"] {
                call.remove(field);
            }
            if let Some(name) = call.remove("name") {
                call.insert("names".to_owned(), json!([name]));
            }
            if call.get("args").is_some_and(Value::is_null) {
                call.remove("args");
            }
        }
    }
    Ok(parsed)
}

/// Docker's `includes` and `excludes`: by capability and architecture.
fn applies(call: &Value, capabilities: &BTreeSet<&'static str>) -> bool {
    let words = |part: &str, field: &str| -> Vec<String> {
        let list = call
            .get(part)
            .and_then(|part| part.get(field))
            .and_then(Value::as_array);
        let words = list.into_iter().flatten().filter_map(Value::as_str);
        words.map(str::to_owned).collect()
    };
    let architecture = crate::host::architecture();
    let held = |name: &String| capabilities.contains(name.as_str());
    let included = words("includes", "arches");
    (included.is_empty() || included.iter().any(|name| name == architecture))
        && words("includes", "caps").iter().all(held)
        && !words("excludes", "arches")
            .iter()
            .any(|name| name == architecture)
        && !words("excludes", "caps").iter().any(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &Value) -> Vec<String> {
        let calls = profile["syscalls"].as_array().unwrap();
        let allowed = calls
            .iter()
            .filter(|call| call["action"] == "SCMP_ACT_ALLOW");
        allowed
            .flat_map(|call| call["names"].as_array().unwrap())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn capabilities_open_calls() {
        let plain = names(&default_profile(&BTreeSet::from(["CAP_SYS_CHROOT"])));
        assert!(plain.contains(&"chroot".to_owned()) && plain.contains(&"clone".to_owned()));
        assert!(!plain.contains(&"mount".to_owned()) && !plain.contains(&"bpf".to_owned()));
        assert!(
            !plain.contains(&"keyctl".to_owned()) && !plain.contains(&"io_uring_setup".to_owned())
        );
        let admin = names(&default_profile(&BTreeSet::from(["CAP_SYS_ADMIN"])));
        assert!(admin.contains(&"mount".to_owned()));
    }

    #[test]
    fn reads_dockers_file_format() {
        let profile = br#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[],"syscalls":[
            {"names":["a"],"action":"SCMP_ACT_ALLOW","args":null,"comment":"x"},
            {"names":["b"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["c"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        let none = custom_profile(profile, &BTreeSet::new()).unwrap();
        assert_eq!(names(&none), ["a", "c"]);
        let admin = custom_profile(profile, &BTreeSet::from(["CAP_SYS_ADMIN"])).unwrap();
        assert_eq!(names(&admin), ["a", "b"]);
        assert!(custom_profile(b"{}", &BTreeSet::new()).is_err());
    }
}
