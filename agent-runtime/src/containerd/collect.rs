//! Which images go, one after another. Pure: images and the disk's state come in, names go out.

use std::collections::VecDeque;

use crate::error::Error;
use crate::image::Collection;

/// An image that no task uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unused {
    /// All its names, the one that is shown first.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub used_s: u64,
}

impl Unused {
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

/// The disk that images are on, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Disk {
    pub total: u64,
    pub available: u64,
}

impl Disk {
    fn used(self) -> u64 {
        self.total.saturating_sub(self.available)
    }

    fn at(self, percent: u8) -> u64 {
        self.total / 100 * u64::from(percent)
    }
}

/// What became of an image that a pass came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Removed,
    /// Somebody took it meanwhile.
    Spared,
}

/// One round of collection: first those that are old enough, then, where the disk was too full at
/// its begin, others until there is room; always those that were not used for the longest first.
#[derive(Debug)]
pub(super) struct Pass {
    unused: VecDeque<(Unused, Ripe)>,
    low_percent: u8,
    too_full: bool,
    gone: Vec<String>,
}

/// Why an image may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ripe {
    Old,
    /// Only for want of room.
    Pressure,
}

impl Pass {
    pub(super) fn new(
        mut unused: Vec<Unused>,
        disk: Option<Disk>,
        policy: &Collection,
        now_s: u64,
    ) -> Self {
        let idle = |image: &Unused| now_s.saturating_sub(image.used_s);
        unused.retain(|image| idle(image) >= policy.minimum_age.as_secs());
        unused.sort_by(|a, b| (a.used_s, &a.names).cmp(&(b.used_s, &b.names)));
        let ripe = |image: &Unused| match policy.age {
            Some(age) if idle(image) >= age.as_secs() => Ripe::Old,
            Some(_) | None => Ripe::Pressure,
        };
        let high = policy.high_percent;
        Self {
            unused: unused
                .into_iter()
                .map(|image| {
                    let ripe = ripe(&image);
                    (image, ripe)
                })
                .collect(),
            low_percent: policy.low_percent,
            gone: Vec::new(),
            too_full: high < 100 && disk.is_some_and(|disk| disk.used() >= disk.at(high)),
        }
    }

    /// The next image to go, as the disk is now: what one frees is not known before it is gone, as
    /// others may have its layers.
    pub(super) fn next(&mut self, disk: Option<Disk>) -> Option<Unused> {
        let (_, ripe) = self.unused.front()?;
        let goes = match ripe {
            Ripe::Old => true,
            // The rest was used later.
            Ripe::Pressure => {
                self.too_full && disk.is_some_and(|disk| disk.used() > disk.at(self.low_percent))
            }
        };
        if !goes {
            return None;
        }
        self.unused.pop_front().map(|(image, _)| image)
    }

    /// What became of it. One that can't be removed keeps none of the others.
    pub(super) fn note(
        &mut self,
        image: &Unused,
        outcome: Result<Outcome, Error>,
    ) -> Result<(), Error> {
        let name = image.name();
        match outcome {
            Ok(Outcome::Removed) => {
                tracing::info!(image = name, "unused image removed");
                self.gone.push(name.to_owned());
            }
            Ok(Outcome::Spared) => {}
            // Nothing can be removed any more.
            Err(error @ Error::Unavailable { .. }) => return Err(error),
            Err(error @ (Error::Fatal(_) | Error::Temporary(_))) => {
                tracing::warn!(image = name, %error, "unused image stays");
            }
        }
        Ok(())
    }

    /// Names of those that went.
    pub(super) fn gone(self) -> Vec<String> {
        self.gone
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_000_000;

    fn image(name: &str, idle_s: u64) -> Unused {
        Unused {
            names: vec![name.to_owned()],
            used_s: NOW - idle_s,
        }
    }

    fn policy(age_s: Option<u64>) -> Collection {
        Collection {
            age: age_s.map(Duration::from_secs),
            high_percent: 85,
            low_percent: 80,
            minimum_age: Duration::from_secs(120),
        }
    }

    fn disk(used: u64) -> Option<Disk> {
        Some(Disk {
            total: 1000,
            available: 1000 - used,
        })
    }

    /// What goes where each image frees so much of a disk that is used so far.
    fn collected(
        images: &[Unused],
        (mut used, freed): (Option<u64>, u64),
        policy: &Collection,
    ) -> Vec<String> {
        let mut pass = Pass::new(images.to_vec(), used.and_then(disk), policy, NOW);
        while let Some(image) = pass.next(used.and_then(disk)) {
            used = used.map(|used| used.saturating_sub(freed));
            pass.note(&image, Ok(Outcome::Removed)).unwrap();
        }
        pass.gone()
    }

    #[test]
    fn old_ones_go() {
        let images = [image("new", 100), image("old", 5000), image("mid", 3000)];
        let room = (Some(500), 1);
        assert_eq!(collected(&images, room, &policy(Some(4000))), ["old"]);
        assert!(collected(&images, room, &policy(None)).is_empty());
        let unseen = (None, 1);
        assert_eq!(
            collected(&images, unseen, &policy(Some(1000))),
            ["old", "mid"]
        );
    }

    #[test]
    fn a_full_disk_takes_the_oldest_until_there_is_room() {
        let images = [
            image("a", 500),
            image("b", 400),
            image("c", 300),
            image("fresh", 60),
        ];
        let policy = policy(None);
        assert!(collected(&images, (Some(849), 30), &policy).is_empty());
        // 850 - 800 = 50: two of 30 make room.
        assert_eq!(collected(&images, (Some(850), 30), &policy), ["a", "b"]);
        // One whose layers others have frees nothing, so the next one goes too.
        assert_eq!(collected(&images, (Some(850), 0), &policy), ["a", "b", "c"]);
        assert_eq!(collected(&images, (Some(850), 500), &policy), ["a"]);
        // The minimum age holds whatever the disk says.
        assert_eq!(
            collected(&images, (Some(999), 30), &policy),
            ["a", "b", "c"]
        );
        let never = Collection {
            high_percent: 100,
            low_percent: 100,
            ..policy
        };
        assert!(collected(&images, (Some(1000), 1), &never).is_empty());
    }

    #[test]
    fn one_that_cannot_be_removed_keeps_none_of_the_others() {
        let images = ["a", "b", "c", "d"].map(|name| image(name, 5000));
        let mut pass = Pass::new(images.to_vec(), None, &policy(Some(1)), NOW);

        while let Some(image) = pass.next(None) {
            let outcome = match image.name() {
                "a" => Err(Error::Fatal("it is damaged".to_owned())),
                "b" => Err(Error::Temporary("no answer".to_owned())),
                "c" => Ok(Outcome::Spared),
                _ => Ok(Outcome::Removed),
            };
            pass.note(&image, outcome).unwrap();
        }
        assert_eq!(pass.gone(), ["d"]);
        let mut pass = Pass::new(images.to_vec(), None, &policy(Some(1)), NOW);
        let away = Error::Unavailable {
            runtime: "containerd".to_owned(),
            reason: "gone".to_owned(),
        };
        let image = pass.next(None).unwrap();
        assert!(pass.note(&image, Err(away)).is_err());
    }

    proptest! {
        #[test]
        fn nothing_that_was_used_lately_goes_and_the_order_of_the_list_does_not_matter(
            idle in prop::collection::vec(0u64..400, 0..12),
            used in 0u64..=1000,
            freed in 0u64..100,
            age in prop::option::of(0u64..500),
        ) {
            let images: Vec<Unused> = idle.iter().enumerate()
                .map(|(n, idle)| image(&n.to_string(), *idle)).collect();
            let goes = |images: &[Unused]| collected(images, (Some(used), freed), &policy(age));
            let gone = goes(&images);
            for name in &gone {
                let image = images.iter().find(|i| i.name() == *name).unwrap();
                prop_assert!(NOW - image.used_s >= 120);
            }
            let mut reversed = images;
            reversed.reverse();
            prop_assert_eq!(goes(&reversed), gone);
        }
    }
}
