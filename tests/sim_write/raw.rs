//! The fear: a raw image that forgets a failed flush. What the flush was to make durable may be lost, and the storage's next
//! one succeeds all the same.

use cowshed::image::{Format, Image, OpenOptions, RefuseAll, Source, WriteOptions};
use cowshed::sim::{Executor, Failure, Faults, SimStorage};
use cowshed::{Error, Result};

type Raw = Image<SimStorage>;

fn assert_latched<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(result, Err(Error::Latched(_))), "{result:?}");
}

#[test]
fn raw_image_accepts_no_change_and_no_flush_after_a_flush_that_failed() {
    for failure in [Failure::Io, Failure::Losing] {
        let executor = Executor::new(1);
        let mut faults = Faults::none();
        faults.at_once = 0;
        let storage = SimStorage::new(&executor, vec![0; 4096], faults);
        let source = Source {
            storage: storage.clone(),
            format: Format::Raw,
            location: "image.raw".into(),
            identity: None,
        };
        let mut options = OpenOptions::default();
        options.write = Some(WriteOptions::default());
        executor
            .run(async {
                let opened = Image::open(source, &RefuseAll::default(), options).await.unwrap();
                let image: Raw = opened.image;
                image.write_at(&[1; 512], 0).await.unwrap();
                storage.fail_request(storage.requests(), failure);
                let failed = image.flush().await.unwrap_err();
                assert!(matches!(failed, Error::Storage { .. }), "{failed}");
                assert_latched(image.flush().await);
                assert_latched(image.write_at(&[2; 512], 0).await);
                assert_latched(image.discard_at(0, 512).await);
                image.read_at(&mut [0; 512], 0).await.unwrap();
                assert_latched(image.close().await);
            })
            .unwrap();
    }
}
