//! Routes of processors: their items, their rows, their dead letters. Their shapes are in [`shape`].

mod shape;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use keiko_core::limit::ITEM_BYTES_MAX;
use keiko_core::page::Page;
use keiko_core::{Code, ItemId};
use serde::Deserialize;

use self::shape::{AddedJson, CountJson, DeadJson, ItemJson, ProcessorJson};
use super::caller::{Caller, Segment};
use super::dto::to_vec;
use super::limit::{ITEMS_BYTES_MAX, PAGE_DEFAULT, PAGE_MAX};
use super::problem::Problem;
use super::task::{idempotency_key, nothing};
use super::{Api, body, json_answer, query};

/// A page of items, in order.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    after: Option<String>,
    limit: Option<u32>,
}

impl List {
    fn read(uri: &Uri) -> Result<(Option<ItemId>, u32), Problem> {
        let list = query::read::<List>(uri)?;
        Ok((query::parse("after", list.after)?, query::page(list.limit, PAGE_DEFAULT, PAGE_MAX)?))
    }
}

pub(super) async fn list(State(api): State<Arc<Api>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let processors = api.handle.processors(caller.tenant).await?;
    let processors: Vec<ProcessorJson<'_>> = processors.iter().map(ProcessorJson::from).collect();
    Ok(json_answer(StatusCode::OK, to_vec(&serde_json::json!({ "processors": processors }))))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let processor = api.handle.processor(caller.tenant, &name.0).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&ProcessorJson::from(&processor))))
}

pub(super) async fn add(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let key = idempotency_key(&headers)?;
    let bytes = body::read_json(body, &headers, caller.until).await?;
    let items = shape::items(&bytes)?;
    let added = api.handle.add_items(caller.tenant, &name.0, items, key).await.map_err(too_large_item)?;
    let status = if added.duplicate { StatusCode::OK } else { StatusCode::CREATED };
    Ok(json_answer(status, to_vec(&AddedJson::from(added))))
}

/// An item over its limit is a body over its limit: HTTP has a status for that.
fn too_large_item(error: keiko_runtime::Error) -> Problem {
    let too_large =
        error.limit.as_ref().is_some_and(|fact| fact.name == "item_bytes" && fact.limit == ITEM_BYTES_MAX);
    let problem = Problem::from(error);
    if too_large { problem.with_status(StatusCode::PAYLOAD_TOO_LARGE) } else { problem }
}

pub(super) async fn items(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    let (after, limit) = List::read(&uri)?;
    Ok(page(api.handle.items(caller.tenant, &name.0, after, limit).await?, "items"))
}

pub(super) async fn rows(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    let (after, limit) = List::read(&uri)?;
    Ok(page(api.handle.rows(caller.tenant, &name.0, after, limit).await?, "rows"))
}

fn page(page: Page<keiko_core::batch::ItemView>, name: &str) -> Response {
    let page = page.within(ITEMS_BYTES_MAX, keiko_core::batch::ItemView::bytes);
    let next = page.items.last().filter(|_| page.more).map(|last| last.id.to_string());
    let shown: Vec<ItemJson<'_>> = page.items.iter().map(ItemJson::from).collect();
    json_answer(StatusCode::OK, shape::page(name, &shown, next))
}

pub(super) async fn flush(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    nothing(&uri, &body)?;
    let count = api.handle.flush(caller.tenant, &name.0).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&CountJson { count })))
}

pub(super) async fn resume(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    nothing(&uri, &body)?;
    api.handle.resume(caller.tenant, &name.0).await?;
    let processor = api.handle.processor(caller.tenant, &name.0).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&ProcessorJson::from(&processor))))
}

pub(super) async fn dead(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    let (after, limit) = List::read(&uri)?;
    let page = api.handle.dead_letters(caller.tenant, &name.0, after, limit).await?;
    let page = page.within(ITEMS_BYTES_MAX, |letter| letter.payload.bytes.len());
    let next = page.items.last().filter(|_| page.more).map(|last| last.id.to_string());
    let shown: Vec<DeadJson<'_>> = page.items.iter().map(DeadJson::from).collect();
    Ok(json_answer(StatusCode::OK, shape::page("dead", &shown, next)))
}

pub(super) async fn one_dead(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let letter = api.handle.dead_letter(caller.tenant, &name, item_id(&id)?).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&DeadJson::from(&letter))))
}

pub(super) async fn retry_dead(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    nothing(&uri, &body)?;
    let count = api.handle.retry_dead(caller.tenant, &name, Some(item_id(&id)?)).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&CountJson { count })))
}

pub(super) async fn retry_all_dead(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    nothing(&uri, &body)?;
    let count = api.handle.retry_dead(caller.tenant, &name.0, None).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&CountJson { count })))
}

pub(super) async fn drop_dead(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let count = api.handle.drop_dead(caller.tenant, &name, Some(item_id(&id)?)).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&CountJson { count })))
}

pub(super) async fn drop_all_dead(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let count = api.handle.drop_dead(caller.tenant, &name.0, None).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&CountJson { count })))
}

/// What is no id names no item.
fn item_id(text: &str) -> Result<ItemId, Problem> {
    text.parse()
        .map_err(|error| Problem::new(Code::NotFound, format!("there is no such dead letter: {error}")))
}
