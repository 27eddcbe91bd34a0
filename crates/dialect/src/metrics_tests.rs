//! Tests of the metrics reader: pages as text, loads as one line.

use super::*;
use proptest::prelude::*;

/// Engine and load in one line; absent signals are left out.
fn shown(scrape: &Scrape) -> String {
    let load = &scrape.load;
    let mut parts = vec![format!("{:?}", scrape.engine)];
    parts.extend(load.waiting.map(|n| format!("waiting {n}")));
    parts.extend(load.running.map(|n| format!("running {n}")));
    parts.extend(load.kv_used.map(|share| format!("kv {share}")));
    parts.extend(load.block_tokens.map(|n| format!("block {n}")));
    parts.extend(load.blocks.map(|n| format!("blocks {n}")));
    parts.extend(load.lora.as_ref().map(|lora| {
        format!(
            "lora {} [{}] [{}]",
            lora.max,
            lora.running.join(" "),
            lora.waiting.join(" ")
        )
    }));
    if scrape.lines_malformed > 0 {
        parts.push(format!("malformed {}", scrape.lines_malformed));
    }
    parts.join(", ")
}

fn check(engine: Option<Engine>, text: &str, expected: &str) {
    assert_eq!(shown(&parse(engine, text.as_bytes())), expected, "{text}");
}

#[test]
fn a_recorded_page_is_read() {
    check(
        None,
        include_str!("../tests/data/vllm-0.32.0-metrics.txt"),
        "Some(Vllm), waiting 0, running 0, kv 0, block 32, blocks 32768, lora 2 [] []",
    );
}

#[test]
fn ranks_are_summed_and_their_kv_use_is_averaged() {
    check(
        None,
        "vllm:num_requests_waiting{engine=\"0\"} 3.0\nvllm:num_requests_waiting{engine=\"1\"} 4\n\
         vllm:num_requests_running{engine=\"0\"} 1e1\nvllm:num_requests_running{engine=\"1\"} 0\n\
         vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.75\n\
         vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"10\",engine=\"0\"} 1.0\n\
         vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"20\",engine=\"1\"} 1.0\n",
        "Some(Vllm), waiting 7, running 10, kv 0.5, block 16, blocks 30",
    );
}

#[test]
fn the_newest_lora_series_wins() {
    check(
        None,
        "vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"} 1.5e9\n\
         vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"ad3,ad1\",waiting_lora_adapters=\"ad2\"} 1.7e9\n\
         vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"ad9\",waiting_lora_adapters=\"\"} 1.6e9\n",
        "Some(Vllm), lora 2 [ad3 ad1] [ad2]",
    );
}

#[test]
fn every_engine_is_known_by_its_families() {
    check(
        None,
        "sglang:num_queue_reqs{model_name=\"m\"} 2\nsglang:num_running_reqs 3\nsglang:token_usage 1.5\n\
         sglang:cache_config_info{page_size=\"64\"} 1\nsglang:max_total_num_tokens 6400\n",
        "Some(Sglang), waiting 2, running 3, kv 1, block 64, blocks 100",
    );
    check(
        None,
        "trtllm_num_requests_waiting 1\ntrtllm_num_requests_running 2\ntrtllm_kv_cache_utilization 0.5\n\
         trtllm_kv_cache_tokens_per_block 32\ntrtllm_kv_cache_max_blocks 77\n",
        "Some(TensorRtLlm), waiting 1, running 2, kv 0.5, block 32, blocks 77",
    );
    check(
        None,
        "nv_inference_pending_request_count{model=\"ensemble\"} 9\n\
         nv_trt_llm_request_metrics{model=\"t\",request_type=\"waiting\",version=\"1\"} 1\n\
         nv_trt_llm_request_metrics{request_type=\"scheduled\"} 2\n\
         nv_trt_llm_request_metrics{request_type=\"max\"} 512\n\
         nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\"} 0.5\n\
         nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"tokens_per\"} 64\n\
         nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\"} 4239\n\
         nv_inference_pending_request_count{model=\"t\"} 9\n",
        "Some(TritonTensorRtLlm), waiting 1, running 2, kv 0.5, block 64, blocks 4239",
    );
    check(
        None,
        "nv_inference_exec_count{model=\"a\"} 900\nnv_inference_pending_request_count{model=\"a\"} 2\n\
         nv_inference_pending_request_count{model=\"b\"} 3\n",
        "Some(Triton), waiting 5",
    );
}

#[test]
fn other_engines_do_not_count() {
    let text = "vllm:num_requests_waiting 1\nsglang:num_queue_reqs 2\n";
    check(None, text, "Some(Vllm), waiting 1");
    check(Some(Engine::Sglang), text, "Some(Sglang), waiting 2");
    check(Some(Engine::Triton), text, "Some(Triton)");
    check(None, "process_cpu_seconds_total 1\n", "None");
}

#[test]
fn values_that_say_nothing_are_not_reported() {
    for value in ["NaN", "+Inf", "-Inf", "-1"] {
        check(
            None,
            &format!("vllm:num_requests_waiting {value}\nvllm:kv_cache_usage_perc {value}\n"),
            "Some(Vllm)",
        );
    }
    check(
        None,
        "vllm:num_requests_waiting 1e300",
        "Some(Vllm), waiting 4294967295",
    );
}

#[test]
fn labels_may_hold_anything() {
    check(
        None,
        "vllm:num_requests_waiting{ model_name = \"a\\\"},{ \\\\\" , engine=\"0\", } 5 1700000000000\n\
         vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"a\\\\b, c=\\\"d\\\" ,\"} 1 # {} 2 3\r\n",
        "Some(Vllm), waiting 5, lora 4 [a\\b c=\"d\"] []",
    );
}

#[test]
fn malformed_lines_are_passed_over_and_counted() {
    check(
        None,
        "vllm:num_requests_waiting{engine=\"0\" 1\nvllm:num_requests_waiting{engine=0} 1\n\
         vllm:num_requests_waiting\tx\nvllm:num_requests_waiting 1 2 3\nvllm:num_requests_waiting \n\
         vllm:num_requests_waiting{a=\"\\\nvllm:num_requests_waiting 2",
        "Some(Vllm), waiting 2, malformed 6",
    );
}

#[test]
fn longer_names_are_other_families() {
    check(
        None,
        "vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 5\nvllm:num_requests_waiting 1\n",
        "Some(Vllm), waiting 1",
    );
}

#[test]
fn adapter_lists_are_cut_at_their_bound() {
    let names: Vec<String> = (0..=ADAPTERS_MAX).map(|n| format!("a{n}")).collect();
    let text = format!(
        "vllm:lora_requests_info{{running_lora_adapters=\"{}\"}} 1",
        names.join(",")
    );
    let lora = parse(None, text.as_bytes()).load.lora.unwrap();
    assert_eq!(lora.running.len(), ADAPTERS_MAX);
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        waiting in prop::collection::vec(0u32..1000, 1..5),
        noise in prop::collection::vec("(# [a-z\"{]{0,9}|vllm:x_[a-z]{0,5} [0-9]|[a-z{}\"]{0,9})", 5),
        name in "[\\PC\\\\\"]{0,9}",
    ) {
        let escaped = name.replace('\\', "\\\\").replace('"', "\\\"");
        let mut lines: Vec<String> = waiting
            .iter()
            .zip(&noise)
            .map(|(n, noise)| {
                format!("{noise}\nvllm:num_requests_waiting{{model_name=\"{escaped}\"}} {n}")
            })
            .collect();
        lines.push(format!("vllm:lora_requests_info{{max_lora=\"1\",running_lora_adapters=\"{escaped}\"}} 1"));
        let scrape = parse(None, lines.join("\n").as_bytes());
        prop_assert_eq!(scrape.load.waiting, Some(waiting.iter().sum()));
        let running: Vec<String> = name.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect();
        let read: Vec<String> = scrape.load.lora.unwrap().running.iter().map(|n| n.to_string()).collect();
        prop_assert_eq!(read, running);
    }

    #[test]
    fn no_page_breaks_the_reader(text in "(vllm:num_requests_waiting|nv_trt_llm_request_metrics|[ {}\"\\\\=,a\n1#]){0,40}") {
        let _ = parse(None, text.as_bytes());
    }
}
