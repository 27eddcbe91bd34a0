//! Cutting an answer into other chunks changes nothing of what is observed.
//! The first byte chooses API, form and cuts.
#![no_main]

use forebay_dialect::{Api, ResponseObserver, Usage};
use forebay_model::Moment;
use libfuzzer_sys::fuzz_target;

const APIS: [Api; 6] = [
    Api::ChatCompletions,
    Api::Completions,
    Api::Responses,
    Api::Messages,
    Api::VllmGenerate,
    Api::SglangGenerate,
];

fn observed(api: Api, stream: bool, text: &[u8], size: usize) -> Usage {
    let mut observer = ResponseObserver::new(api, stream);
    for piece in text.chunks(size) {
        observer.push(piece, Moment::ORIGIN);
    }
    observer.finish(Moment::ORIGIN)
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, text)) = input.split_first() else {
        return;
    };
    let api = APIS[usize::from(choice) % APIS.len()];
    let stream = choice < 200;
    let whole = observed(api, stream, text, text.len().max(1));
    for size in [1, usize::from(choice >> 2) + 2] {
        assert_eq!(observed(api, stream, text, size), whole);
    }
});
