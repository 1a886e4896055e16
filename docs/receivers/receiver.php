<?php
// Takes the webhooks of pzbridge: verifies the signature, stores each event once as a file in a
// folder, and answers where a call should go.
//
//   WEBHOOK_SECRET=whsec_… INBOX=inbox php -S 127.0.0.1:9000 receiver.php

function verify(string $secret, string $body): bool {
    $id = $_SERVER['HTTP_WEBHOOK_ID'] ?? '';
    $sent = $_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? '';
    if (!ctype_digit($sent) || abs(time() - (int)$sent) > 300) return false;
    $key = base64_decode(substr($secret, strlen('whsec_')));
    $want = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$sent.$body", $key, true));
    foreach (explode(' ', $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '') as $got) {
        if (hash_equals($want, $got)) return true;
    }
    return false;
}

// The extension that gets a client's call; an empty one declines.
function manager(string $client): string {
    return ['+73430112233' => '101'][$client] ?? '';
}

$body = file_get_contents('php://input');
if (!verify(getenv('WEBHOOK_SECRET'), $body)) {
    http_response_code(401);
    exit;
}
$event = json_decode($body, true);
if ($event['type'] === 'call.transfer_requested') { // a person waits: answer at once
    header('Content-Type: application/json');
    echo json_encode(['transfer_to' => manager($event['data']['client_number'] ?? '')]);
    exit;
}
// Something else does the work with these files. One that is there already has come before.
$inbox = getenv('INBOX');
@mkdir($inbox, 0700, true);
$file = $inbox . '/' . basename($event['id']) . '.json';
$part = tempnam($inbox, '.part-');
$stored = file_put_contents($part, $body) === strlen($body) && (@link($part, $file) || file_exists($file));
unlink($part);
http_response_code($stored ? 204 : 500); // after 500 it comes again
