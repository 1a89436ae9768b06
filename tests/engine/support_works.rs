//! The test support itself: QEMU finds every image of the matrix sound, and the matrix holds what it promises.

use std::sync::Mutex;

use crate::support::for_each_image;

#[test]
fn matrix_images_are_sound_and_cover_every_kind_of_extent() {
    let seen = Mutex::new([0_usize; 5]);
    let count = for_each_image(|image| {
        image.check_json();
        let map = image.map_json();
        let mut seen = seen.lock().unwrap();
        for extent in map.as_array().unwrap() {
            let flag = |name: &str| extent[name].as_bool().unwrap();
            seen[0] += usize::from(flag("data") && extent["depth"] == 0);
            seen[1] += usize::from(flag("compressed"));
            seen[2] += usize::from(flag("zero") && flag("present"));
            seen[3] += usize::from(!flag("present"));
            seen[4] += usize::from(extent["depth"].as_u64().unwrap() > 0);
        }
        assert!(image.reference.iter().any(|byte| *byte != 0), "{}", image.description);
        for snapshot in &image.snapshots {
            assert_ne!(snapshot.reference, image.reference, "{}", image.description);
        }
    });
    assert!(count >= 130, "{count} images");
    let seen = seen.into_inner().unwrap();
    println!("{count} images; extents: data, compressed, zero, absent, from below: {seen:?}");
    assert!(seen.iter().all(|kind| *kind > 50), "{seen:?}");
}
