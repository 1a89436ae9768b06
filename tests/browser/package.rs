//! The npm package as a page uses it: `openImage` and `Image`, from JavaScript. What is expected of the kept images is
//! what `qemu-img info`, `map` and `convert` say of them.

use cowshed::rt::JsTimer;
use cowshed::wasm::{judge_image, open_image};
use js_sys::{Array, Function, Promise, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use wasm_bindgen_test::*;

/// Runs `body`, an asynchronous JavaScript function of `open` and `judge` (which are `openImage` and `judgeImage`), `kept` (the kept files by name, to be called and awaited)
/// and `assert`; what it throws fails the test.
async fn script(body: &str) {
    let open = Closure::<dyn FnMut(JsValue, JsValue) -> Promise>::new(open_image);
    let judge = Closure::<dyn FnMut(JsValue, JsValue) -> Promise>::new(judge_image);
    let files = [
        ("chain.qcow2", &include_bytes!("../browser_images/chain.qcow2.gz")[..]),
        ("chain_middle.qcow2", include_bytes!("../browser_images/chain_middle.qcow2.gz")),
        ("chain_base.raw", include_bytes!("../browser_images/chain_base.raw.gz")),
        ("chain.raw", include_bytes!("../browser_images/chain.raw.gz")),
        ("data_file.qcow2", include_bytes!("../browser_images/data_file.qcow2.gz")),
        ("data_file_data.raw", include_bytes!("../browser_images/data_file_data.raw.gz")),
        ("data_file.raw", include_bytes!("../browser_images/data_file.raw.gz")),
        ("snapshots.qcow2", include_bytes!("../browser_images/snapshots.qcow2.gz")),
        ("subclusters.qcow2", include_bytes!("../browser_images/subclusters.qcow2.gz")),
        ("v3_zeros.qcow2", include_bytes!("../browser_images/v3_zeros.qcow2.gz")),
        ("zlib.qcow2", include_bytes!("../browser_images/zlib.qcow2.gz")),
    ];
    let packed: Array = files
        .iter()
        .map(|(name, bytes)| Array::of2(&JsValue::from_str(name), &Uint8Array::from(*bytes)))
        .collect();
    let run = Function::new_with_args(
        "openImage, judgeImage, packed",
        &format!(
            "const files = new Map(packed);
            const kept = async (name) => {{
                const stream = new Blob([files.get(name)]).stream().pipeThrough(new DecompressionStream('gzip'));
                return new File([await new Response(stream).arrayBuffer()], name);
            }};
            const open = (source, options) => openImage(source, options);
            const judge = (source, options) => judgeImage(source, options);
            const text = (value) => JSON.stringify(value, (_, v) => typeof v === 'bigint' ? `${{v}}n` : v);
            const assert = (got, wanted) => {{
                if (text(got) !== text(wanted)) throw new Error(`got ${{text(got)}}, wanted ${{text(wanted)}}`);
            }};
            const rejected = async (promise) => {{
                try {{ await promise; }} catch (error) {{ return error; }}
                throw new Error('it did not reject');
            }};
            return (async () => {{ {body} }})();"
        ),
    );
    let promise = run.call3(&JsValue::NULL, open.as_ref(), judge.as_ref(), &packed).unwrap();
    if let Err(thrown) = JsFuture::from(promise.unchecked_into::<Promise>()).await {
        let message = js_sys::Reflect::get(&thrown, &"message".into()).unwrap();
        panic!("{}", message.as_string().unwrap_or_else(|| format!("{thrown:?}")));
    }
}

#[wasm_bindgen_test]
async fn an_image_tells_what_it_is() {
    script(
        "const image = await open(await kept('v3_zeros.qcow2'));
        assert([image.virtualSize, image.format, image.formatGuessed], [1572864n, 'qcow2', true]);
        assert(image.clusterSize, 65536);
        assert(image.hostSize, BigInt((await kept('v3_zeros.qcow2')).size));
        const info = image.info();
        assert(info['virtual-size'], 1572864);
        assert(info.filename, 'v3_zeros.qcow2');
        assert(info['cluster-size'], 65536);
        assert(info['dirty-flag'], false);
        assert(info['format-specific'], { type: 'qcow2', data: {
            compat: '1.1', 'compression-type': 'zlib', 'lazy-refcounts': false,
            'refcount-bits': 1, corrupt: false, 'extended-l2': false } });
        const fields = Object.fromEntries(image.header().map((field) => [field.name, field]));
        assert(fields.magic, { name: 'magic', offset: 0, length: 4, value: 0x514649fbn, meaning: '\"QFI\\\\xfb\"' });
        assert(fields.size.value, 1572864n);
        assert(fields.header_length.value, 112n);
        assert(fields.cluster_bits, { name: 'cluster_bits', offset: 20, length: 4, value: 16n, meaning: '65536 bytes' });
        assert(image.features(), []);
        assert(image.snapshots(), []);
        assert(image.layers().map(({ name, format, virtualSize, depth }) => [name, format, virtualSize, depth]),
            [['v3_zeros.qcow2', 'qcow2', 1572864n, 0]]);
        assert(image.extensions().map(({ type, name, offset }) => [type, name, offset]), [[0x6803f857, 'feature name table', 112]]);
        await image.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn every_header_field_is_where_the_file_has_it() {
    script(
        "for (const name of ['v3_zeros.qcow2', 'chain.qcow2', 'snapshots.qcow2', 'data_file.qcow2']) {
            const file = await kept(name);
            const view = new DataView(await file.arrayBuffer());
            const image = await open(file, { resolve: () => 'zeros' });
            for (const { name, offset, length, value } of image.header()) {
                const there = length === 8 ? view.getBigUint64(offset)
                    : BigInt(length === 4 ? view.getUint32(offset) : view.getUint8(offset));
                assert([name, value], [name, there]);
            }
            for (const { type, offset, length } of image.extensions()) {
                assert([view.getUint32(offset), view.getUint32(offset + 4)], [type, length]);
            }
            await image.close();
        }",
    )
    .await;
}

#[wasm_bindgen_test]
async fn the_page_is_asked_for_each_file_of_a_chain() {
    script(
        "const asked = [];
        const image = await open(await kept('chain.qcow2'), { name: 'top', format: 'qcow2', resolve: async (reference) => {
            asked.push(reference);
            return { source: await kept(reference.name) };
        } });
        assert(asked, [
            { kind: 'backing-file', name: 'chain_middle.qcow2', format: 'qcow2', depth: 1, from: 'top' },
            { kind: 'backing-file', name: 'chain_base.raw', format: 'raw', depth: 2, from: 'chain_middle.qcow2' },
        ]);
        assert(image.formatGuessed, false);
        assert(image.layers().map(({ name, format, depth }) => [name, format, depth]),
            [['top', 'qcow2', 0], ['chain_middle.qcow2', 'qcow2', 1], ['chain_base.raw', 'raw', 2]]);
        assert(image.info()['backing-filename'], 'chain_middle.qcow2');
        assert(image.info()['backing-filename-format'], 'qcow2');
        const read = await image.read(0n, Number(image.virtualSize));
        assert(Array.from(read), Array.from(new Uint8Array(await (await kept('chain.raw')).arrayBuffer())));
        await image.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn a_data_file_is_asked_for_and_bytes_in_memory_will_do() {
    script(
        "const asked = [];
        const bytes = async (name) => new Uint8Array(await (await kept(name)).arrayBuffer());
        const image = await open(await bytes('data_file.qcow2'), { resolve: async (reference) => {
            asked.push([reference.kind, reference.name, reference.format, reference.depth]);
            return { source: await bytes('data_file_data.raw') };
        } });
        assert(asked, [['data-file', 'data_file_data.raw', null, 0]]);
        assert(image.features().map(({ set, bit, name, known }) => [set, bit, name, known]),
            [['incompatible', 2, 'external data file', true]]);
        assert(Array.from(await image.read(0n, 262144)), Array.from(await bytes('data_file.raw')));
        await image.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn what_is_missing_is_refused_by_name_or_read_as_zeros() {
    script(
        "for (const resolve of [undefined, () => null, async () => null]) {
            const error = await rejected(open(await kept('chain.qcow2'), { resolve }));
            assert([error.name, error.code, error instanceof Error], ['CowshedError', 'refused', true]);
            assert(error.reference, { kind: 'backing-file', name: 'chain_middle.qcow2' });
        }
        const thrown = await rejected(open(await kept('chain.qcow2'), { resolve: () => { throw new Error('no, thanks'); } }));
        assert([thrown.code, thrown.message.includes('no, thanks')], ['refused', true]);
        const image = await open(await kept('chain.qcow2'), { resolve: () => 'zeros' });
        assert(Array.from(await image.read(65536n, 4)), [0, 0, 0, 0]);
        assert(Array.from(await image.read(0n, 4)), [19, 19, 19, 19]);
        await image.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn a_chain_that_bites_its_tail_is_an_error() {
    script(
        "const top = await kept('chain.qcow2');
        const error = await rejected(open(top, { resolve: () => ({ source: top, format: 'qcow2' }) }));
        assert(error.structure, 'backing chain');",
    )
    .await;
}

#[wasm_bindgen_test]
async fn snapshots_are_listed_as_text_and_opened_by_name() {
    script(
        "const file = await kept('snapshots.qcow2');
        const image = await open(file);
        const listed = image.snapshots();
        assert(listed.map(({ id, name, diskSize, vmStateSize, vmClock, icount }) => [id, name, diskSize, vmStateSize, vmClock, icount]), [
            ['1', 'first', 262144n, 0n, 0n, 0n], ['2', 'second <b>&amp;', 524288n, 0n, 0n, 0n]]);
        assert(listed.every(({ date }) => date > 1.7e9), true);
        assert(image.info().snapshots.map((s) => [s.id, s.name, s['vm-state-size'], s['vm-clock-sec']]),
            [['1', 'first', 0, 0], ['2', 'second <b>&amp;', 0, 0]]);
        const first = await open(file, { snapshot: 'first' });
        assert([first.virtualSize, image.virtualSize], [262144n, 524288n]);
        assert(String.fromCharCode(...await first.read(0n, 4)), 'line');
        assert((await rejected(open(file, { snapshot: 'third' }))).code, 'not-found');
        await first.close();
        await image.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn the_map_is_that_of_qemu() {
    // qemu-img map --output=json, in other words.
    script(
        "const image = await open(await kept('v3_zeros.qcow2'));
        const K = 65536n;
        const map = await image.map(0n, image.virtualSize, 100);
        assert(map.map(({ offset, length, kind, host }) => [offset, length, kind, host]), [
            [0n, K, 'data', 327680n], [K, K, 'zero', 393216n], [2n * K, K, 'zero', null],
            [3n * K, K, 'data', 524288n], [4n * K, K, 'zero', null], [5n * K, 16n * K, 'unallocated', null],
            [21n * K, K, 'data', 458752n], [22n * K, 2n * K, 'unallocated', null]]);
        assert((await image.map(0n, image.virtualSize, 2)).length, 2);
        assert((await image.map(K + 5n, 10n, 5)).map(({ offset, length }) => [offset, length]), [[K + 5n, 10n]]);
        assert((await image.map(image.virtualSize, 10n, 5)), []);
        const zlib = await open(await kept('zlib.qcow2'));
        const [first] = await zlib.map(0n, 16384n, 1);
        assert([first.kind, first.length, first.host > 0n, first.hostLength > 0n], ['compressed', 16384n, true, true]);
        await image.close();
        await zlib.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn a_check_counts_as_qemu_counts() {
    // qemu-img check --output=json, which leaves out what is 0.
    script(
        "const counts = (report) => ['image-end-offset', 'total-clusters', 'allocated-clusters', 'compressed-clusters',
            'fragmented-clusters', 'check-errors', 'corruptions', 'leaks'].map((key) => report[key]);
        for (const [name, wanted] of [['v3_zeros', [589824, 24, 4, 0, 2, 0, 0, 0]], ['zlib', [114688, 64, 13, 12, 12, 0, 0, 0]],
            ['snapshots', [180224, 128, 27, 0, 4, 0, 0, 0]]]) {
            const image = await open(await kept(`${name}.qcow2`));
            const progress = [];
            const report = await image.check((done, total) => progress.push([done, total]));
            assert(counts(report), wanted);
            assert([report.findings, report.filename], [[], `${name}.qcow2`]);
            assert(progress.length > 0 && progress.every(([done, total]) => done <= total), true);
            await image.close();
        }
        // The refcount of the last cluster but one, cleared: its first refcount block is at cluster 2.
        const bytes = new Uint8Array(await (await kept('snapshots.qcow2')).arrayBuffer());
        bytes[2 * 4096 + 2 * 42] = bytes[2 * 4096 + 2 * 42 + 1] = 0;
        const broken = await open(bytes);
        const report = await broken.check();
        assert([report.corruptions > 0, report.findings[0].class, typeof report.findings[0].offset],
            [true, 'corruption', 'bigint']);
        const raw = await open(new Blob(['x']));
        assert((await rejected(raw.check())).code, 'invalid-argument');
        await broken.close();
        await raw.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn a_verdict_names_what_an_image_refers_to() {
    script(
        "const plain = await open(await kept('v3_zeros.qcow2'));
        assert((await plain.verdict()).conclusion, 'safe');
        const chain = await open(await kept('chain.qcow2'), { resolve: () => 'zeros' });
        const { conclusion, findings } = await chain.verdict();
        assert(conclusion !== 'safe', true);
        const backing = findings.find(({ code }) => code.startsWith('backing'));
        assert([backing.text.includes('chain_middle.qcow2'), typeof backing.severity], [true, 'string']);
        await plain.close();
        await chain.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn an_image_that_cannot_be_opened_is_judged() {
    script(
        "const chain = await judge(await kept('chain.qcow2'));
        assert(chain.findings.some(({ code, text }) => code.startsWith('backing') && text.includes('chain_middle.qcow2')), true);
        const bytes = new Uint8Array(await (await kept('v3_zeros.qcow2')).arrayBuffer());
        bytes[20 + 3] = 40;
        await rejected(open(bytes));
        const broken = await judge(bytes, { format: 'qcow2' });
        assert([broken.conclusion, broken.findings.some(({ structure }) => structure === 'header')], ['unsafe', true]);",
    )
    .await;
}

#[wasm_bindgen_test]
async fn bitmaps_are_listed() {
    script(
        "const image = await open(await kept('subclusters.qcow2'));
        // qemu-img info --output=json.
        const bitmaps = [{ flags: ['auto'], name: 'bits', granularity: 32768 }, { flags: [], name: 'other', granularity: 65536 }];
        assert(image.bitmaps(), bitmaps);
        assert(image.info()['format-specific'].data.bitmaps, bitmaps);
        assert(image.features().map(({ set, name }) => [set, name]),
            [['incompatible', 'extended L2 entries'], ['autoclear', 'bitmaps']]);
        await image.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn errors_have_a_code_and_a_place() {
    script(
        "const image = await open(await kept('v3_zeros.qcow2'));
        const beyond = await rejected(image.read(image.virtualSize - 1n, 2));
        assert([beyond.code, beyond.offset], ['out-of-bounds', image.virtualSize - 1n]);
        assert((await rejected(image.read(-1n, 1))).code, 'out-of-bounds');
        assert((await rejected(image.read(0n, 2 ** 30))).code, 'limit-exceeded');
        assert((await rejected(image.readHost(1n << 62n, 1))).code, 'out-of-bounds');
        assert((await rejected(open(7))).code, 'invalid-argument');
        assert((await rejected(open(new Blob([]), { format: 'vmdk' }))).code, 'invalid-argument');
        const bytes = new Uint8Array(await (await kept('v3_zeros.qcow2')).arrayBuffer());
        bytes[20 + 3] = 40;
        const broken = await rejected(open(bytes));
        assert([broken.structure, typeof broken.offset, broken.code.length > 0], ['header', 'bigint', true]);
        await image.close();
        assert((await rejected(image.read(0n, 1))).code, 'closed');
        await image.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn raw_images_open_too() {
    script(
        "const image = await open(new Blob(['hello, disk']));
        assert([image.format, image.formatGuessed, image.virtualSize, image.clusterSize], ['raw', true, 512n, undefined]);
        assert(String.fromCharCode(...await image.read(7n, 4)), 'disk');
        assert(image.header(), []);
        const { format, filename, 'virtual-size': size } = image.info();
        assert([format, filename, size], ['raw', 'image', 512]);
        assert((await image.map(0n, 512n, 9)).map(({ kind, length, host }) => [kind, length, host]), [['data', 11n, 0n], ['zero', 501n, 11n]]);
        assert(Array.from(await image.read(500n, 12)), Array(12).fill(0));
        const header = await open(new Blob(['QFI\\xfb']), { format: 'raw' });
        assert([header.format, header.formatGuessed], ['raw', false]);
        await image.close();
        await header.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn host_bytes_and_statistics() {
    script(
        "const image = await open(await kept('v3_zeros.qcow2'));
        assert(Array.from(await image.readHost(0n, 4)), [0x51, 0x46, 0x49, 0xfb]);
        await image.read(0n, 65536);
        const { layers, blobs } = image.statistics();
        assert([layers.length, blobs.length, layers[0].l2.misses > 0, blobs[0].fetches > 0], [1, 1, true, true]);
        await image.close();",
    )
    .await;
}

#[wasm_bindgen_test]
async fn a_closed_image_leaves_no_timer_behind() {
    assert_eq!(JsTimer::waiting(), 0);
    script(
        "globalThis.open_image = await open(await kept('v3_zeros.qcow2'));
        await open_image.read(0n, 4096);
        await new Promise((done) => setTimeout(done, 5));",
    )
    .await;
    assert_eq!(JsTimer::waiting(), 1, "the cleaner sleeps");
    script("await open_image.close(); await new Promise((done) => setTimeout(done, 5));").await;
    assert_eq!(JsTimer::waiting(), 0);
}

#[wasm_bindgen_test]
async fn an_image_that_is_freed_without_close_ends_its_cleaner() {
    script(
        "const image = await open(await kept('v3_zeros.qcow2'));
        await image.read(0n, 4096);
        image.free();
        await new Promise((done) => setTimeout(done, 5));",
    )
    .await;
    assert_eq!(JsTimer::waiting(), 0);
}

#[wasm_bindgen_test]
fn the_module_imports_nothing_but_its_glue() {
    // A dependency that wants a clock, randomness or a C library shows as an import of another module.
    let imports = Function::new_with_args(
        "module",
        "return WebAssembly.Module.imports(module).map(({ module, name }) => `${module}.${name}`)
            .filter((name) => !/^(wbg|\\.\\/[a-z_-]*_bg\\.js)\\./.test(name));",
    );
    let foreign: Array =
        imports.call1(&JsValue::NULL, &wasm_bindgen::module()).unwrap().unchecked_into();
    assert_eq!(foreign.length(), 0, "{foreign:?}");
}
