//! The whole, end to end: swarmd and swarmctl as processes, hosts as network namespaces, containers on real containerd.
//!
//! Each test has a lab of its own and leaves nothing. They need root and the programs of `make deps`; where these are
//! missing a test says that it is left out, and with CI=true it fails. The programs under test are found beside the tests,
//! or by SWARMD_BIN, SWARMCTL_BIN and WEB_BIN; `make test` builds them first.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod e2e {
    mod abuse;
    mod addresses;
    mod ansible;
    mod autolock;
    mod autopilot;
    mod ca;
    mod certificates;
    mod chaos;
    mod debian;
    mod docker;
    mod expired;
    mod external_ca;
    mod frames;
    mod host;
    mod images;
    mod kills;
    mod managers;
    mod messages;
    mod oci;
    mod oci_cases;
    mod oci_fields;
    mod oci_table;
    mod recovery;
    mod refusals;
    mod scenarios;
    mod state;
    mod status;
    mod tasks;
    mod usage;
}
