//! Verdict and check as plain objects.

use js_sys::Function;
use wasm_bindgen::JsValue;

use super::describe;
use super::value::{array, number, object, or_null};
use crate::error::Result;
use crate::image::check::{CheckObserver, CheckOptions, CheckReport, Finding, FindingClass};
use crate::image::{Image, Source};
use crate::inspect::{HostBytes, ReadAt, StorageBytes, Verdict, VerdictOptions, verdict};
use crate::storage::Storage;

/// A broken image has millions of findings; a page gets the first of them.
const FINDINGS_MAX: usize = 1000;

/// Judges the image.
pub(super) async fn judge<S: Storage>(image: &Image<S>) -> Result<JsValue> {
    let Some(top) = describe::top(image) else { return Ok(JsValue::NULL) };
    let file = FileBytes::Open(HostBytes(image));
    let options = VerdictOptions::default();
    Ok(verdict_value(&verdict(&file, top.format, Some(image), &options).await?))
}

/// Judges an image that is not open.
pub(super) async fn judge_source<S: Storage>(source: &Source<S>) -> Result<JsValue> {
    let file = FileBytes::Unopened(StorageBytes::new(&source.storage).await?);
    let options = VerdictOptions::default();
    Ok(verdict_value(&verdict(&file, source.format, None::<&Image<S>>, &options).await?))
}

/// The bytes of a file, open or not: one type, so that the verdict is compiled once.
enum FileBytes<'a, S> {
    Open(HostBytes<'a, S>),
    Unopened(StorageBytes<&'a S>),
}

impl<S: Storage> ReadAt for FileBytes<'_, S> {
    fn len(&self) -> u64 {
        match self {
            Self::Open(bytes) => bytes.len(),
            Self::Unopened(bytes) => bytes.len(),
        }
    }

    async fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Self::Open(bytes) => bytes.read_at(buf, offset).await,
            Self::Unopened(bytes) => bytes.read_at(buf, offset).await,
        }
    }
}

fn verdict_value(verdict: &Verdict) -> JsValue {
    let findings = verdict.findings().iter().map(|finding| {
        object([
            ("severity", finding.severity.name().into()),
            ("code", finding.code.into()),
            ("text", finding.text.as_str().into()),
            ("structure", finding.structure.into()),
            ("offset", or_null(finding.offset)),
        ])
    });
    object([("conclusion", verdict.conclusion().name().into()), ("findings", array(findings))])
}

/// Checks the image's metadata, telling `progress` how far it is and `told` what is found.
pub(super) async fn check<S: Storage>(
    image: &Image<S>,
    progress: Option<Function>,
    told: Option<Function>,
) -> Result<JsValue> {
    let mut observer = PageObserver::new(progress, told);
    let report = image.check(&CheckOptions::default(), &mut observer).await?;
    let name = describe::top(image).map(|top| super::open::location(top.location));
    Ok(check_value(or_null(name), &report, observer))
}

/// Hands progress and the first findings to the page, and keeps the latter.
pub(super) struct PageObserver {
    progress: Option<Function>,
    told: Option<Function>,
    findings: Vec<JsValue>,
    total: u64,
}

impl PageObserver {
    pub(super) fn new(progress: Option<Function>, told: Option<Function>) -> Self {
        Self { progress, told, findings: Vec::new(), total: 0 }
    }
}

impl CheckObserver for PageObserver {
    fn finding(&mut self, finding: &Finding) {
        self.total += 1;
        if self.findings.len() < FINDINGS_MAX {
            let class = match finding.class() {
                FindingClass::Leak => "leak",
                FindingClass::Corruption => "corruption",
                FindingClass::CheckError => "check-error",
            };
            let finding = object([
                ("class", class.into()),
                ("text", finding.to_string().into()),
                ("structure", finding.structure.name().into()),
                ("offset", finding.offset.into()),
            ]);
            if let Some(told) = &self.told {
                // What the page throws is the page's affair.
                let _ = told.call1(&JsValue::NULL, &finding);
            }
            self.findings.push(finding);
        }
    }

    fn progress(&mut self, done: u64, total: u64) {
        if let Some(progress) = &self.progress {
            // What the page throws is the page's affair.
            let _ = progress.call2(&JsValue::NULL, &number(done), &number(total));
        }
    }
}

/// Under the keys of `qemu-img check --output=json`, and the findings.
pub(super) fn check_value(name: JsValue, report: &CheckReport, observer: PageObserver) -> JsValue {
    object([
        ("image-end-offset", number(report.image_end_offset)),
        ("total-clusters", number(report.total_clusters)),
        ("check-errors", number(report.check_errors)),
        ("corruptions", number(report.corruptions)),
        ("leaks", number(report.leaks)),
        ("allocated-clusters", number(report.allocated_clusters)),
        ("fragmented-clusters", number(report.fragmented_clusters)),
        ("compressed-clusters", number(report.compressed_clusters)),
        ("filename", name),
        ("format", "qcow2".into()),
        ("findings", array(observer.findings)),
        ("findings-total", number(observer.total)),
    ])
}
