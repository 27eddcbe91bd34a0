//! No page breaks the metrics reader, and shares stay shares.
#![no_main]

use forebay_dialect::metrics::parse;
use forebay_model::Engine;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|page: &[u8]| {
    let scrape = parse(None, page);
    if let Some(share) = scrape.load.kv_used {
        assert!((0.0..=1.0).contains(&share));
    }
    if let Some(engine) = scrape.engine
        && engine != Engine::TritonTensorRtLlm
    {
        assert_eq!(parse(Some(engine), page), scrape);
    }
});
