//! Which images go. Pure: images and disk come in, names come out.

use crate::image::Collection;

/// An image that no task uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unused {
    pub name: String,
    /// Bytes that go with it at most: other images may have some of them too.
    pub size: u64,
    /// Seconds since 1970.
    pub used_s: u64,
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

/// The images to remove: those that are old enough, and while the disk is too full also others,
/// those that were not used for the longest first.
pub(super) fn choose(
    mut unused: Vec<Unused>,
    disk: Option<Disk>,
    policy: &Collection,
    now_s: u64,
) -> Vec<String> {
    let idle = |image: &Unused| now_s.saturating_sub(image.used_s);
    unused.retain(|image| idle(image) >= policy.minimum_age.as_secs());
    unused.sort_by(|a, b| (a.used_s, &a.name).cmp(&(b.used_s, &b.name)));
    let mut too_much = match disk {
        Some(disk) if policy.high_percent < 100 && disk.used() >= disk.at(policy.high_percent) => {
            disk.used().saturating_sub(disk.at(policy.low_percent))
        }
        Some(_) | None => 0,
    };
    let mut chosen = Vec::new();
    for image in unused {
        let old = policy.age.is_some_and(|age| idle(&image) >= age.as_secs());
        if !old && too_much == 0 {
            // The rest was used later.
            break;
        }
        too_much = too_much.saturating_sub(image.size);
        chosen.push(image.name);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_000_000;

    fn image(name: &str, idle_s: u64, size: u64) -> Unused {
        Unused {
            name: name.to_owned(),
            size,
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

    #[test]
    fn old_ones_go() {
        let images = vec![
            image("new", 100, 1),
            image("old", 5000, 1),
            image("mid", 3000, 1),
        ];
        assert_eq!(
            choose(images.clone(), disk(500), &policy(Some(4000)), NOW),
            ["old"]
        );
        assert!(choose(images.clone(), disk(500), &policy(None), NOW).is_empty());
        assert_eq!(
            choose(images, None, &policy(Some(1000)), NOW),
            ["old", "mid"]
        );
    }

    #[test]
    fn a_full_disk_takes_the_oldest_until_there_is_room() {
        let images = vec![
            image("a", 500, 30),
            image("b", 400, 30),
            image("c", 300, 30),
            image("fresh", 60, 900),
        ];
        let chosen = |used| choose(images.clone(), disk(used), &policy(None), NOW);
        assert!(chosen(849).is_empty());
        // 850 - 800 = 50: two of 30 make room.
        assert_eq!(chosen(850), ["a", "b"]);
        // The minimum age holds whatever the disk says.
        assert_eq!(chosen(999), ["a", "b", "c"]);
        let never = Collection {
            high_percent: 100,
            low_percent: 100,
            ..policy(None)
        };
        assert!(choose(images, disk(1000), &never, NOW).is_empty());
    }

    proptest! {
        #[test]
        fn nothing_that_was_used_lately_goes_and_the_order_of_the_list_does_not_matter(
            images in prop::collection::vec((0u64..400, 1u64..100), 0..12),
            used in 0u64..=1000,
            age in prop::option::of(0u64..500),
        ) {
            let images: Vec<Unused> = images.iter().enumerate()
                .map(|(n, (idle, size))| image(&n.to_string(), *idle, *size)).collect();
            let chosen = choose(images.clone(), disk(used), &policy(age), NOW);
            for name in &chosen {
                let image = images.iter().find(|i| i.name == *name).unwrap();
                prop_assert!(NOW - image.used_s >= 120);
            }
            let mut reversed = images;
            reversed.reverse();
            prop_assert_eq!(choose(reversed, disk(used), &policy(age), NOW), chosen);
        }
    }
}
