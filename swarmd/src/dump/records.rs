//! The records of a snapshot, up to where it is damaged.

use std::io::Read as _;

use crate::manager::raft::Survey;

/// The records that can be read, encoded.
pub(super) fn of_snapshot(survey: &Survey, problems: &mut Vec<String>) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let mut reader = match survey.read_snapshot() {
        Ok(Some(reader)) => reader,
        // Named already.
        Ok(None) | Err(_) => return records,
    };
    loop {
        let mut len = [0; 4];
        let read = reader.read_exact(&mut len);
        let len = u64::from(u32::from_be_bytes(len));
        let mut record = Vec::new();
        let read = read.and_then(|()| (&mut reader).take(len).read_to_end(&mut record));
        match read {
            Ok(0) => return records,
            Ok(_) => records.push(record),
            Err(error) => {
                let error = error.to_string();
                if !problems.contains(&error) {
                    problems.push(error);
                }
                return records;
            }
        }
    }
}
